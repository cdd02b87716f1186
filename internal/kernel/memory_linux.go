package kernel

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of the larger pages that the system may back memory with.
const hugePage = 2 << 20

// adviseHuge asks for larger pages under b: weights are read from end to end for every token, and each page that the CPU has
// to look up costs. Where the system declines, nothing is lost.
func adviseHuge(b []byte) {
	from := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % hugePage
	if n := uintptr(len(b)); n >= from+hugePage {
		_ = unix.Madvise(b[from:from+(n-from)/hugePage*hugePage], unix.MADV_HUGEPAGE)
	}
}
