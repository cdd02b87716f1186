package bench

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropPageCache makes the kernel forget files that were synced, and asks it whether it has.
func dropPageCache(files []string) error {
	for _, path := range files {
		if err := dropFile(path); err != nil {
			return err
		}
	}
	return nil
}

func dropFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("posix_fadvise: %w", err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(mapped) //nolint:errcheck // it was mapped
	pages := make([]byte, (len(mapped)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mapped[0])), uintptr(len(mapped)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		return fmt.Errorf("mincore: %w", errno)
	}
	kept := 0
	for _, p := range pages {
		kept += int(p & 1)
	}
	if kept > len(pages)/20 {
		return fmt.Errorf("the file system kept %d of %d pages", kept, len(pages))
	}
	return nil
}
