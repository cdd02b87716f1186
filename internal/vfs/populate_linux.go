package vfs

import "golang.org/x/sys/unix"

// populate needs Linux 5.14; an older one takes the hint that all of it is read soon.
func populate(pages []byte) {
	if unix.Madvise(pages, unix.MADV_POPULATE_READ) != nil {
		_ = unix.Madvise(pages, unix.MADV_WILLNEED)
	}
}
