//go:build amd64 && !linux && !purego

package kernel

// requestTiles is false: only Linux's way of asking for AMX's registers is known here.
func requestTiles() bool { return false }
