//go:build invariants || race

package kv

// invariants: the store checks itself after each change.
const invariants = true
