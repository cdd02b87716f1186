package kv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/tessera-llm/tessera/internal/vfs"
)

var update = flag.Bool("update", false, "rewrite testdata/block-v1.kv")

const golden = "testdata/block-v1.kv"

// sample is the file of the block 0 of these tests, sampleOf that of any.
func sample() []byte { return sampleOf(idOf(0)) }

func sampleOf(id ID) []byte {
	payload := payloadFor(id, small)
	return slices.Concat(newHeader(id, small, "portable", payload).encode(), payload)
}

// The golden file's block keeps the id that it was given when NumericsVersion was 1.
func TestGolden_OpensForEver(t *testing.T) {
	id, _ := ParseID("b7d3de3b2cba4218246ed543331e02fa0e05f284bf919dae4a86d29156f4729c")
	if *update {
		if err := os.WriteFile(golden, sampleOf(id), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, sampleOf(id)) {
		t.Error("the same block would be written with other bytes: that needs a new format version and a sample of its own")
	}
	dir := newDir(t)
	path := filepath.Join(dir, id.String()[:2], id.String()+".kv")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := open(t, vfs.OS{}, dir, Options{})
	l, err := s.Get(id, small)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Source() != Disk || !bytes.Equal(l.Payload(), payloadFor(id, small)) {
		t.Errorf("a payload from %v that is not what was written", l.Source())
	}
	infos, err := s.List()
	if err != nil || len(infos) != 1 || infos[0].KernelPath != "portable" || infos[0].Shape != small {
		t.Errorf("list: got %+v, %v", infos, err)
	}
}

// resealed changes a header and makes its checksum right again: what a wrong writer would write.
func resealed(at int, with []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[at:], with)
		binary.LittleEndian.PutUint64(b[4088:], xxh3.Hash(b[:4088]))
		return b
	}
}

func flipped(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x10; return b }
}

// corruptions: how to break the file of a block, and what is said then.
var corruptions = []struct {
	name  string
	wreck func([]byte) []byte
	said  string
}{
	{"empty", func(b []byte) []byte { return nil }, "file: found 0 bytes, expected a header of at least 4096 bytes"},
	{"cut in the fields", func(b []byte) []byte { return b[:100] }, "file: found 100 bytes, expected a header"},
	{"cut after the header", func(b []byte) []byte { return b[:4096] }, "layer 0: found 0 of its bytes, expected 256 bytes"},
	{"cut in layer 2", func(b []byte) []byte { return b[:4096+2*256+7] }, "layer 2: found 7 of its bytes, expected 256 bytes"},
	{"last byte missing", func(b []byte) []byte { return b[:len(b)-1] }, "layer 2: found 255 of its bytes"},
	{"longer", func(b []byte) []byte { return append(b, 0) }, "file: found 4865 bytes, expected 4864 bytes"},
	{"doubled", func(b []byte) []byte { return append(b, b...) }, "file: found 9728 bytes"},
	{"not ours", func(b []byte) []byte { copy(b, "GGUF"); return b }, `magic: found "GGUF`},
	{"text transfer", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")) }, "magic: found"},
	{"another version", resealed(8, u32(2)), "version: found 2, expected 1"},
	{"header size 0", resealed(12, u32(0)), "header size: found 0, expected a multiple of 4096"},
	{"header size odd", resealed(12, u32(5000)), "header size: found 5000"},
	{"header size huge", resealed(12, u32(0xfffff000)), "header size: found 4294963200"},
	{"header size beyond the file", resealed(12, u32(8192)), "header: found 4864 bytes, expected 8192 bytes"},
	{"another id", resealed(16, bytes.Repeat([]byte{0xab}, 32)), "id: found abab"},
	{"type 0", resealed(48, u32(0)), "KV type: found type 0, expected f16 (1), f32 (2), bf16 (3) or q8 (4)"},
	{"type of a later writer", resealed(48, u32(5)), "KV type: found type 5"},
	{"type beyond a byte", resealed(48, u32(257)), "KV type: found type 255"},
	{"type f32", resealed(48, u32(2)), "layer 1: found 256 of its bytes, expected 512 bytes"},
	{"type bf16", resealed(48, u32(3)), "shape: found bf16, 3 layers"},
	{"type q8", resealed(48, u32(4)), "head dimension: found 4, expected a multiple of 32 for q8"},
	{"no layers", resealed(52, u32(0)), "layers: found 0, expected 1 to 4096"},
	{"too many layers", resealed(52, u32(4097)), "layers: found 4097"},
	{"layers that need a larger header", resealed(52, u32(4096)), "header size: found 4096, expected 36864 for 4096 layers"},
	{"heads", resealed(56, u32(1<<31)), "KV heads: found 2147483648, expected 1 to 4096"},
	{"dim", resealed(60, u32(0)), "head dimension: found 0"},
	{"tokens", resealed(64, u32(1<<22+1)), "tokens: found 4194305, expected 1 to 4194304"},
	{"everything at its largest", resealed(52, slices.Concat(u32(487), u32(4096), u32(4096), u32(1<<22))), "layer 0: found 768 of its bytes, expected 281474976710656 bytes"},
	{"another shape of the same size", resealed(60, slices.Concat(u32(5), u32(4))), "shape: found f16, 3 layers × 2 heads × 4 tokens × 5, expected f16, 3 layers × 2 heads × 5 tokens × 4"},
	{"reserved byte", resealed(70, []byte{1}), "reserved bytes: found others, expected zeros"},
	{"byte after the kernel path", resealed(111, []byte{1}), "reserved bytes"},
	{"byte after the checksums", resealed(192+3*8, []byte{1}), "reserved bytes"},
	{"kernel path flipped", flipped(72), "header checksum: found"},
	{"MAC flipped", flipped(112), "header checksum: found"},
	{"checksum of layer 1 flipped", flipped(192 + 8), "header checksum: found"},
	{"padding of the header flipped", flipped(4000), "header checksum: found"},
	{"first byte of layer 1 flipped", flipped(4096 + 256), "layer 1: checksum of its bytes: found"},
	{"padding between K and V flipped", flipped(4096 + 63), "layer 0: checksum of its bytes: found"},
	{"wrong checksum of layer 2, header right", resealed(192+16, make([]byte, 8)), "layer 2: checksum of its bytes: found"},
	{"layers swapped", func(b []byte) []byte {
		return slices.Concat(b[:4096], b[4096+256:4096+512], b[4096:4096+256], b[4096+512:])
	}, "layer 0: checksum of its bytes: found"},
}

func TestStore_CorruptFile_IsSetAsideReportedAndRecomputed(t *testing.T) {
	for _, c := range corruptions {
		t.Run(c.name, func(t *testing.T) {
			files := vfs.NewMem()
			s, _ := open(t, files, "/kv", Options{})
			put(t, s, 0)
			checked(t, s)
			s.Close()
			files.WriteFile(blockPath("/kv", 0), c.wreck(sample()))

			s, w := open(t, files, "/kv", Options{})
			want(t, "first Get", get(t, s, 0), "missing")
			w.mustWarn(t, blockPath("/kv", 0), c.said)
			want(t, "second Get", get(t, s, 0), "missing")
			st, err := s.Stat()
			if err != nil || st.Blocks != 0 || st.SetAside != 1 {
				t.Errorf("stat: got %+v, %v, want no block and one file set aside", st, err)
			}
			put(t, s, 0) // computed again
			checked(t, s)
			s.Close()
			s, _ = open(t, files, "/kv", Options{})
			want(t, "after recomputing and reopening", get(t, s, 0), "disk")
		})
	}
}

// verify checks all of a file.
func verify(file []byte, id ID, shape Shape) error {
	m, err := newMapped(&vfs.Mapping{Data: file}, "", id, shape)
	if err != nil {
		return err
	}
	return m.verifyAll()
}

func TestVerify_EveryFlippedBitIsDetected(t *testing.T) {
	good := sample()
	if err := verify(good, idOf(0), small); err != nil {
		t.Fatal(err)
	}
	file := slices.Clone(good)
	for at := range file {
		bit := byte(1) << (at % 8)
		file[at] ^= bit
		if verify(file, idOf(0), small) == nil {
			t.Errorf("byte %d, bit %d flipped: not detected", at, at%8)
		}
		file[at] ^= bit
	}
}

func TestVerify_EveryCutIsDetected(t *testing.T) {
	file := sample()
	for n := range file {
		if verify(file[:n], idOf(0), small) == nil {
			t.Errorf("cut to %d of %d bytes: not detected", n, len(file))
		}
	}
}

func TestList_NamesAFileThatIsNotWhole(t *testing.T) {
	files := vfs.NewMem()
	s, _ := open(t, files, "/kv", Options{})
	put(t, s, 0)
	checked(t, s)
	s.Close()
	files.WriteFile(blockPath("/kv", 0), sample()[:100])
	s, _ = open(t, files, "/kv", Options{})
	infos, err := s.List()
	if err != nil || len(infos) != 1 {
		t.Fatalf("got %+v, %v, want one", infos, err)
	}
	if bad, ok := errors.AsType[*FormatError](infos[0].Err); !ok || bad.Path != blockPath("/kv", 0) || infos[0].ID != idOf(0) {
		t.Errorf("got %+v, want the id with a FormatError that names its file", infos[0])
	}
}

// What parses is exactly what encode would write, so there is one file for one block; and nothing panics.
func FuzzHeader(f *testing.F) {
	f.Add(sample())
	for _, c := range corruptions {
		f.Add(c.wreck(sample()))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, seal := range []bool{false, true} { // the fuzzer does not guess checksums
			if seal && len(file) >= 4096 {
				file = resealed(0, nil)(slices.Clone(file))
			}
			h, err := parseHeader(file)
			if err != nil {
				if _, ok := errors.AsType[*FormatError](err); !ok {
					t.Errorf("got %T, want a FormatError: %v", err, err)
				}
				continue
			}
			if again := h.encode(); !bytes.Equal(again, file[:len(again)]) {
				t.Errorf("header of %d bytes does not survive a round trip: %+v", len(again), h)
			}
			_ = verify(file, h.id, h.shape) // reads within the file
		}
	})
}
