package kv

import (
	"encoding/binary"
	"encoding/hex"
	"hash"

	"github.com/zeebo/blake3"
)

// NumericsVersion changes whenever the same inputs would give other bits on the same kernel path: another order of summation,
// another rounding of keys or values. It is part of every ID, so old blocks are not found any more and age out.
const NumericsVersion = 6

// An ID names a block by everything that its bytes were computed from. The zero ID names no block.
type ID [32]byte

// String returns the ID as 64 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads an ID back from the digits that String gives.
func ParseID(s string) (id ID, ok bool) {
	if len(s) != hex.EncodedLen(len(id)) {
		return ID{}, false
	}
	for _, c := range []byte(s) { // one spelling only: a file name with capitals is not the name of a block
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ID{}, false
		}
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil
}

// Inputs are all that the bytes of a block depend on.
type Inputs struct {
	Model   [32]byte // fingerprint of the whole model file
	Adapter [32]byte // fingerprint of the adapter; zero: none
	Type    Type     // number format of keys and values
	RoPE    []byte   // canonical bytes of the RoPE parameters
	Salt    []byte   // keeps one tenant's blocks from another's; empty: shared by all
	Parent  ID       // what a dependent block attends to, see Parent; zero: an independent block
	Tokens  []int32
}

// ID is the BLAKE3 hash of the fields in the order of docs/block-format.md, each behind its length.
func (in Inputs) ID() ID {
	h := fieldHash{blake3.New()}
	h.number(formatVersion)
	h.number(NumericsVersion)
	h.bytes(in.Model[:])
	h.bytes(in.Adapter[:])
	h.number(uint32(in.Type))
	h.bytes(in.RoPE)
	h.bytes(in.Salt)
	if in.Parent == (ID{}) {
		h.bytes(nil)
	} else {
		h.bytes(in.Parent[:])
	}
	h.tokens(in.Tokens)
	return h.sum()
}

// Parent is the hash of the ordered ids of all earlier blocks: the parent of a dependent block that attends to them.
// Without earlier blocks it is zero, since a dependent block at the very start is computed like an independent one.
func Parent(ids []ID) ID {
	if len(ids) == 0 {
		return ID{}
	}
	h := fieldHash{blake3.New()}
	for _, id := range ids {
		h.bytes(id[:])
	}
	return h.sum()
}

// fieldHash hashes fields, each behind its length in bytes, so that no two lists of fields run into the same bytes.
type fieldHash struct{ hash.Hash }

func (h fieldHash) length(n int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	h.Write(b[:])
}

func (h fieldHash) bytes(b []byte) {
	h.length(len(b))
	h.Write(b)
}

func (h fieldHash) number(v uint32) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	h.bytes(b[:])
}

func (h fieldHash) tokens(ids []int32) {
	h.length(4 * len(ids))
	var buf [1024]byte
	for len(ids) > 0 {
		n := min(len(ids), len(buf)/4)
		for i, id := range ids[:n] {
			binary.LittleEndian.PutUint32(buf[4*i:], uint32(id))
		}
		h.Write(buf[:4*n])
		ids = ids[n:]
	}
}

func (h fieldHash) sum() (id ID) {
	h.Sum(id[:0])
	return id
}
