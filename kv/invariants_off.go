//go:build !invariants && !race

package kv

// invariants: the store does not check itself. Build with -tags invariants, or -race, and it does.
const invariants = false
