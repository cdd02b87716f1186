//go:build unix && !linux

package vfs

import "golang.org/x/sys/unix"

func populate(pages []byte) { _ = unix.Madvise(pages, unix.MADV_WILLNEED) }
