package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// freeMemory is how many bytes this process could still take without the machine, or the container it runs in, being short of them.
// 0: nobody knows.
func freeMemory() (n int64) {
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "MemAvailable:" {
				kib, _ := strconv.ParseInt(fields[1], 10, 64)
				n = kib << 10
				break
			}
		}
	}
	limit, used := cgroupBytes("memory.max"), cgroupBytes("memory.current")
	if limit > 0 && (n == 0 || limit-used < n) {
		n = max(limit-used, 1)
	}
	return n
}

// cgroupBytes is a figure of the container's, 0 where there is none.
func cgroupBytes(name string) int64 {
	b, err := os.ReadFile("/sys/fs/cgroup/" + name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is none
	return n
}
