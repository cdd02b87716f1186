//go:build !linux

package bench

import "errors"

func dropPageCache([]string) error { return errors.New("this is known for Linux only") }
