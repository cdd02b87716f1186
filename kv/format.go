package kv

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/zeebo/xxh3"
)

// formatVersion is the version of the file layout and part of every ID. A changed byte is a new version.
const formatVersion = 1

// The magic is not text (high bit, both line ends, ^Z), so that a transfer which converts text breaks it at once.
const magic = "\x89TKV\r\n\x1a\n"

// Offsets in the header; docs/block-format.md draws it.
const (
	atVersion     = 8
	atHeaderBytes = 12
	atID          = 16
	atType        = 48
	atLayers      = 52
	atHeads       = 56
	atDim         = 60
	atTokens      = 64
	atReserved    = 68
	atKernelPath  = 72
	atMAC         = 112
	atReserved2   = 144
	atSums        = 192

	maxKernelPath = atMAC - atKernelPath
	headerUnit    = 4096 // the payload starts at a multiple of a small page
)

// header is what a file says about its payload.
type header struct {
	id         ID
	shape      Shape
	kernelPath string
	mac        [32]byte // zero: no key is configured anywhere yet
	sums       []uint64 // XXH3-64 of each layer
}

// headerBytes is the size of the header of a block with so many layers: fields, a checksum for each layer, the header's own.
func headerBytes(layers int) int { return roundUp(atSums+8*layers+8, headerUnit) }

// fileBytes is the size of a whole file.
func fileBytes(s Shape) int64 { return int64(headerBytes(s.Layers)) + int64(s.Bytes()) }

// newHeader describes payload, which must be shape.Bytes() long.
func newHeader(id ID, shape Shape, kernelPath string, payload []byte) header {
	h := header{id: id, shape: shape, kernelPath: kernelPath, sums: make([]uint64, shape.Layers)}
	for i := range h.sums {
		h.sums[i] = xxh3.Hash(layerOf(payload, shape, i))
	}
	return h
}

func layerOf(payload []byte, s Shape, layer int) []byte {
	n := s.LayerBytes()
	return payload[layer*n : (layer+1)*n]
}

func (h header) encode() []byte {
	b := make([]byte, headerBytes(h.shape.Layers))
	le := binary.LittleEndian
	copy(b, magic)
	le.PutUint32(b[atVersion:], formatVersion)
	le.PutUint32(b[atHeaderBytes:], uint32(len(b)))
	copy(b[atID:], h.id[:])
	le.PutUint32(b[atType:], uint32(h.shape.Type))
	le.PutUint32(b[atLayers:], uint32(h.shape.Layers))
	le.PutUint32(b[atHeads:], uint32(h.shape.Heads))
	le.PutUint32(b[atDim:], uint32(h.shape.Dim))
	le.PutUint32(b[atTokens:], uint32(h.shape.Tokens))
	copy(b[atKernelPath:atMAC], h.kernelPath)
	copy(b[atMAC:], h.mac[:])
	for i, sum := range h.sums {
		le.PutUint64(b[atSums+8*i:], sum)
	}
	le.PutUint64(b[len(b)-8:], xxh3.Hash(b[:len(b)-8]))
	return b
}

// FormatError tells what in a block's file is not as version 1 of the format wants it.
type FormatError struct {
	Path            string
	Part            string // the field, layer or checksum
	Found, Expected string
}

func (e *FormatError) Error() string {
	misfit := fmt.Sprintf("%s: found %s, expected %s", e.Part, e.Found, e.Expected)
	if e.Path == "" { // not in a file yet
		return misfit
	}
	return fmt.Sprintf("kv: %s: %s", e.Path, misfit)
}

func misfit(part string, found, expected any) error {
	return &FormatError{Part: part, Found: fmt.Sprint(found), Expected: fmt.Sprint(expected)}
}

// parseHeader reads the header at the start of file and checks everything but the layers' bytes: that the header is whole,
// that its numbers are within bounds, and that the file is as long as they say.
func parseHeader(file []byte) (header, error) {
	le := binary.LittleEndian
	if len(file) < headerUnit {
		return header{}, misfit("file", byteCount(len(file)), fmt.Sprintf("a header of at least %s", byteCount(headerUnit)))
	}
	if string(file[:atVersion]) != magic {
		return header{}, misfit("magic", fmt.Sprintf("%q", file[:atVersion]), fmt.Sprintf("%q", magic))
	}
	if v := le.Uint32(file[atVersion:]); v != formatVersion {
		return header{}, misfit("version", v, formatVersion) // whatever follows has another meaning
	}
	size := int64(le.Uint32(file[atHeaderBytes:]))
	if size < headerUnit || size > int64(headerBytes(maxLayers)) || size%headerUnit != 0 {
		return header{}, misfit("header size", size, fmt.Sprintf("a multiple of %d up to %d", headerUnit, headerBytes(maxLayers)))
	}
	if size > int64(len(file)) {
		return header{}, misfit("header", byteCount(len(file)), byteCount(int(size)))
	}
	b := file[:size]
	if found, expected := le.Uint64(b[size-8:]), xxh3.Hash(b[:size-8]); found != expected {
		return header{}, misfit("header checksum", fmt.Sprintf("%016x", found), fmt.Sprintf("%016x", expected))
	}

	// From here on the bytes are as someone wrote them; what is wrong now was written wrong.
	number := func(at int) int { return int(le.Uint32(b[at:])) }
	h := header{id: ID(b[atID:]), mac: [32]byte(b[atMAC:]), shape: Shape{
		Type: Type(min(number(atType), 255)), Layers: number(atLayers), Heads: number(atHeads), Dim: number(atDim), Tokens: number(atTokens),
	}}
	if err := h.shape.validate(); err != nil {
		return header{}, err
	}
	if want := headerBytes(h.shape.Layers); int(size) != want {
		return header{}, misfit("header size", size, fmt.Sprintf("%d for %d layers", want, h.shape.Layers))
	}
	path, zeros, _ := bytes.Cut(b[atKernelPath:atMAC], []byte{0})
	h.kernelPath = string(path)
	sumsEnd := atSums + 8*h.shape.Layers
	for _, rest := range [][]byte{zeros, b[atReserved:atKernelPath], b[atReserved2:atSums], b[sumsEnd : size-8]} {
		if len(bytes.TrimLeft(rest, "\x00")) != 0 {
			return header{}, misfit("reserved bytes", "others", "zeros")
		}
	}
	h.sums = make([]uint64, h.shape.Layers)
	for i := range h.sums {
		h.sums[i] = le.Uint64(b[atSums+8*i:])
	}
	return h, h.checkSize(int64(len(file)))
}

// checkSize names the first layer that a short file lacks bytes of.
func (h header) checkSize(file int64) error {
	want := fileBytes(h.shape)
	if file == want {
		return nil
	}
	if file > want {
		return misfit("file", byteCount(int(file)), byteCount(int(want)))
	}
	payload, layer := int(file)-headerBytes(h.shape.Layers), h.shape.LayerBytes()
	return misfit(fmt.Sprintf("layer %d", payload/layer), fmt.Sprintf("%d of its bytes", payload%layer), byteCount(layer))
}

// checkLayer compares a layer's bytes with its checksum.
func (h header) checkLayer(layer int, data []byte) error {
	if got, want := xxh3.Hash(data), h.sums[layer]; got != want {
		return misfit(fmt.Sprintf("layer %d: checksum of its bytes", layer), fmt.Sprintf("%016x", got), fmt.Sprintf("%016x", want))
	}
	return nil
}

func byteCount(n int) string { return fmt.Sprintf("%d bytes", n) }
