//go:build !purego

package kernel

import "golang.org/x/sys/unix"

// requestTiles asks for permission to use AMX's tile data in this process, as Linux wants it (arch_prctl, ARCH_REQ_XCOMP_PERM).
func requestTiles() bool {
	const requestPermission, tileData = 0x1023, 18
	_, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, requestPermission, tileData, 0)
	return errno == 0
}
