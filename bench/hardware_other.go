//go:build !linux

package bench

import "runtime"

// hardware is the kind of CPU; more is known on Linux only.
func hardware() (name string, memory int64) { return runtime.GOARCH, 0 }
