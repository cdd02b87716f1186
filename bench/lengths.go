package bench

import (
	"fmt"
	"strconv"
	"strings"
)

// maxLength keeps a slip of the finger from filling the memory.
const maxLength = 1 << 20

// ParseLengths reads numbers of tokens with commas between them; 4K is 4,096.
func ParseLengths(list string) ([]int, error) {
	var lengths []int
	for word := range strings.SplitSeq(list, ",") {
		digits, unit := strings.TrimSpace(word), 1
		if short, ok := strings.CutSuffix(strings.ToUpper(digits), "K"); ok {
			digits, unit = short, 1024
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || n == 0 || n > maxLength/uint64(unit) {
			return nil, fmt.Errorf("length %q: want a number of tokens from 1 to 1024K, such as 512 or 4K", word)
		}
		lengths = append(lengths, int(n)*unit)
	}
	return lengths, nil
}

// lengthName is the short form of a number of tokens.
func lengthName(n int) string {
	if n >= 1024 && n%1024 == 0 {
		return strconv.Itoa(n/1024) + "K"
	}
	return strconv.Itoa(n)
}
