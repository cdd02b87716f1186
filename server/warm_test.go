package server

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

func TestWarm_WhileNobodyAsks_BlocksOfCollectionsAreMade(t *testing.T) {
	x, err := tessera.Open(tessera.Options{Model: testenv.Tiny("tiny-tied.gguf"), Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := New(x, Options{Library: t.TempDir(), Warm: true, Loopback: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, l, time.Second) }()
	defer func() {
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	url := "http://" + l.Addr().String()
	take := func(files map[string]string) {
		t.Helper()
		if status, text := upload(t, url+"/api/collections/birds/files", files); status != 200 || !strings.Contains(text, fmt.Sprintf(`"added":%d`, len(files))) {
			t.Fatalf("%d %s", status, text)
		}
	}
	take(map[string]string{"ravens.txt": "Ravens hide food.", "owls.txt": "Owls hear mice."})
	made := func(blocks int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if stat, err := x.StoreStat(); err != nil {
				t.Fatal(err)
			} else if stat.RAMBlocks >= blocks {
				return
			} else if time.Now().After(deadline) {
				t.Fatalf("%d blocks are made, want %d", stat.RAMBlocks, blocks)
			}
		}
	}
	made(3) // the system's and one for each file
	status, text := post(t, url+"/v1/chat/completions", `{"messages":[{"role":"user","content":"Which ravens hide food?"}],"max_tokens":2,"tessera":{"attention":"block","collection":"birds","passages":1}}`)
	if status != 200 || !strings.Contains(text, `"kind":"passage","id":"`) || strings.Contains(text[strings.Index(text, `"kind":"passage"`):strings.Index(text, `"kind":"query"`)], `"computed"`) {
		t.Errorf("a question after warming: %d %s", status, text)
	}
	take(map[string]string{"swifts.txt": "Swifts sleep in flight."})
	made(4)
}
