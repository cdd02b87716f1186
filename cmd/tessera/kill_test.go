package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

func newStoreDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kv")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// command is this program in a process of its own, with its files under home.
func command(home string, args ...string) *exec.Cmd {
	cmd := exec.Command("tessera", args...) // on the path: see TestMain
	cmd.Env = append(os.Environ(), "TESSERA_HOME="+home)
	return cmd
}

// output runs the command, which must succeed and print nothing on stderr.
func output(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("%v: %v, stderr %q", cmd.Args[1:], err, errs.String())
	}
	return out
}

// A process that is killed while it writes blocks leaves whole blocks or none, and nothing that the next one stumbles over.
func TestAsk_KilledWhileWriting_LeavesAStoreThatAnswersRight(t *testing.T) {
	dir := t.TempDir()
	docs := filepath.Join(dir, "docs.jsonl")
	var lines strings.Builder
	const passages = 24
	for i := range passages {
		fmt.Fprintf(&lines, "{\"id\":\"p%d\",\"text\":\"It is %d.\"}\n", i, i*i)
	}
	if err := os.WriteFile(docs, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(home string) *exec.Cmd {
		return command(home, "ask", "-m", testenv.Tiny("tiny-tied.gguf"), "-d", docs, "-k", "100", "--attention", "block", "--max-tokens", "8", "--json", "What is it?")
	}
	read := func(home string) (r tessera.Receipt) {
		if err := json.Unmarshal(output(t, ask(home)), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	begin := time.Now()
	want := read(filepath.Join(dir, "unharmed"))
	took := time.Since(begin)

	seed := uint64(begin.UnixNano())
	rng := rand.New(rand.NewPCG(seed, 0))
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	partly, round := 0, 0
	home := ""
	for ; round < rounds || partly == 0 && round < 10*rounds; round++ {
		if round%3 == 0 { // else killed again over what the last one left, its blocks dropped
			home = filepath.Join(dir, fmt.Sprint(round))
		} else {
			output(t, command(home, "kv", "drop", "--all"))
		}
		victim := ask(home)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		// Most of the time is the start; the blocks come in the last part.
		time.Sleep(took/4 + time.Duration(rng.Int64N(int64(took))))
		_ = victim.Process.Kill() // it may have ended
		_ = victim.Wait()
		_, left, err := leftovers(home)
		if err != nil {
			t.Fatal(err)
		}
		if 0 < left && left < passages+1 {
			partly++
		}

		got := read(home)
		if got.Answer != want.Answer || got.Usage != (tessera.ReceiptUsage{Prompt: want.Usage.Prompt, Cached: got.Usage.Cached, Completion: want.Usage.Completion}) {
			t.Errorf("seed %d, round %d: answer %q, usage %+v; want %q, %+v", seed, round, got.Answer, got.Usage, want.Answer, want.Usage)
		}
		disk := 0
		for i, b := range got.Blocks {
			if b.ID != want.Blocks[i].ID {
				t.Errorf("seed %d, round %d: block %d has another id", seed, round, i)
			}
			if b.Source == "disk" {
				disk++
			}
		}
		if disk != left {
			t.Errorf("seed %d, round %d: %d blocks came from disk, %d files were there", seed, round, disk, left)
		}
		var list struct{ Blocks []struct{ ID string } }
		if err := json.Unmarshal(output(t, command(home, "kv", "ls", "--json")), &list); err != nil {
			t.Fatal(err)
		}
		others, blocks, err := leftovers(home)
		others = slices.DeleteFunc(others, func(name string) bool { return !strings.HasPrefix(name, "kv") }) // a cut memo of a hash is no block
		if err != nil || len(others) > 0 || len(list.Blocks) != passages+1 || blocks != passages+1 {
			t.Errorf("seed %d, round %d: kv ls lists %d blocks, the folder has %d and also %q (%v); want %d and nothing else", seed, round, len(list.Blocks), blocks, others, err, passages+1)
		}
	}
	t.Logf("an undisturbed run takes %v; %d of %d kills came between the first block and the last", took, partly, round)
	if partly == 0 {
		t.Errorf("seed %d: no kill came between the first block and the last", seed)
	}
}
