package kv

import (
	"fmt"
	"os"
	"testing"

	"github.com/tessera-llm/tessera/internal/vfs"
)

// block100 is a passage of 100 tokens of SmolLM2-135M at f16.
var block100 = Shape{Type: F16, Layers: 30, Heads: 3, Dim: 64, Tokens: 100}

func benchStore(b *testing.B, o Options, blocks int) *Store {
	b.Helper()
	s, err := Open(b.TempDir(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	for n := range blocks {
		l, err := s.Put(idOf(n), block100, payloadFor(idOf(n), block100))
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkGet: from the heap, from a mapping that is kept, and from a file in the page cache, all of it verified.
func BenchmarkGet(b *testing.B) {
	for _, c := range []struct {
		source string
		ram    int64
		reopen bool
	}{{"heap", 0, false}, {"mapped", 0, true}, {"file", 1, true}} {
		b.Run(fmt.Sprintf("%s/L=%d/f16", c.source, block100.Tokens), func(b *testing.B) {
			const blocks = 16
			s := benchStore(b, Options{}, blocks)
			if c.reopen {
				s.Close()
				var err error
				if s, err = Open(s.folder.dir, Options{RAMBytes: c.ram}); err != nil {
					b.Fatal(err)
				}
				defer s.Close()
			}
			use := func(id ID) {
				l, err := s.Get(id, block100)
				if err != nil {
					b.Fatal(err)
				}
				l.Close()
			}
			ids := make([]ID, blocks)
			for n := range blocks {
				ids[n] = idOf(n)
				use(ids[n])
			}
			if c.ram == 1 {
				b.SetBytes(int64(block100.Bytes()))
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				use(ids[i%blocks])
			}
		})
	}
}

// BenchmarkWrite: a block put and on disk, synced.
func BenchmarkWrite(b *testing.B) {
	s := benchStore(b, Options{RAMBytes: 1, DiskBytes: 64 << 20}, 0)
	b.SetBytes(int64(block100.Bytes()))
	for n := 0; b.Loop(); n++ {
		l, err := s.Put(idOf(n), block100, payloadFor(ID{}, block100))
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
		if err := s.Flush(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen: a folder of a thousand blocks, opened and surveyed.
func BenchmarkOpen(b *testing.B) {
	tiny := Shape{Type: F16, Layers: 1, Heads: 1, Dim: 1, Tokens: 1}
	files := vfs.OS{}
	f := &folder{fs: files, dir: b.TempDir(), limit: DefaultDiskBytes}
	for n := range 1000 {
		id := idOf(n)
		if err := files.MkdirAll(f.subdir(id)); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(f.path(id), make([]byte, fileBytes(tiny)), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		s, err := Open(f.dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}
