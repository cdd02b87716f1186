package main

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// leastMemory is what freeMemory tells where a container has used up all it may: there is always something to give back.
const leastMemory = 64 << 20

// freeMemory is how many bytes this process could still take without the machine, or the container it runs in, being short of them.
// 0: nobody knows.
func freeMemory() (n int64) {
	n = field("/proc/meminfo", "MemAvailable:") << 10 // KiB
	for _, c := range []struct{ limit, used, stat, reclaimable string }{
		{"memory.max", "memory.current", "memory.stat", "inactive_file"},
		{"memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"}, // cgroups of version 1
	} {
		const folder = "/sys/fs/cgroup/"
		limit := number(folder + c.limit)
		if limit == 0 {
			continue
		}
		left := limit - number(folder+c.used) + field(folder+c.stat, c.reclaimable) // files that were read count as used, until others need the room
		if n == 0 || left < n {
			n = max(left, leastMemory)
		}
	}
	return n
}

// field is the number behind a name in a file of lines, 0 where there is none.
func field(path, name string) int64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == name {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		}
	}
	return 0
}

// number is the one that a file holds, 0 where there is none.
func number(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // "max" is none
	return n
}
