package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

// TestMain lets scripts and tests run this program as the command tessera, a process of its own.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tessera": main})
}

// The scripts in testdata. Besides testscript's commands they have those below; TINY is a tiny random model whose tokens are bytes
// and whose context is 512, GEMMA the same file with another architecture, CUT one that lacks its end, LONG a text of 600 bytes.
func TestCommands(t *testing.T) {
	tiny, err := os.ReadFile(testenv.Tiny("tiny-tied.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("TESSERA_HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("TINY", testenv.Tiny("tiny-tied.gguf"))
			e.Setenv("LONG", strings.Repeat("why ", 150))
			e.Setenv("GEMMA", filepath.Join(e.WorkDir, "gemma.gguf"))
			e.Setenv("CUT", filepath.Join(e.WorkDir, "cut.gguf"))
			gemma, err := otherArchitecture(tiny)
			if err != nil {
				return err
			}
			return errors.Join(
				os.WriteFile(e.Getenv("GEMMA"), gemma, 0o600),
				os.WriteFile(e.Getenv("CUT"), tiny[:len(tiny)-5000], 0o600))
		},
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Getuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fails": fails, "whole": whole, "sources": sources, "same": same, "blockid": blockID, "flip": flip,
		},
	})
}

// otherArchitecture is the file with the value of general.architecture replaced by one as long.
func otherArchitecture(file []byte) ([]byte, error) {
	key := []byte("general.architecture")
	at := bytes.Index(file, key) + len(key) + 4 + 8 // type and length come before the value
	if string(file[at:at+5]) != "llama" {
		return nil, fmt.Errorf("no architecture at byte %d", at)
	}
	file = bytes.Clone(file)
	copy(file[at:], "gemma")
	return file, nil
}

var oneLineAndHint = regexp.MustCompile(`\Atessera: [^\n]+\n(hint: [^\n]+\n)?\z`)

// fails STATUS COMMAND…: the command ends with that status, prints nothing on stdout, and on stderr one line and perhaps a hint.
func fails(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || strconv.Itoa(exit.ExitCode()) != args[0] {
		ts.Fatalf("%v: got %v, want exit status %s", args[1:], err, args[0])
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("%v: stdout is %q, want nothing", args[1:], out)
	}
	if out := ts.ReadFile("stderr"); !oneLineAndHint.MatchString(out) {
		ts.Fatalf("%v: stderr is %q, want one line and perhaps a hint", args[1:], out)
	}
}

// wholeFiles are all that may lie in TESSERA_HOME between commands.
var wholeFiles = regexp.MustCompile(`^(kv/lock|kv/[0-9a-f]{2}/[0-9a-f]{64}\.kv|cache/fingerprints\.json)$`)

// leftovers returns what else is there, and how many blocks.
func leftovers(home string) (others []string, blocks int, err error) {
	err = filepath.WalkDir(home, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		name, _ := filepath.Rel(home, path)
		if strings.HasSuffix(name, ".kv") {
			blocks++
		}
		if !wholeFiles.MatchString(filepath.ToSlash(name)) {
			others = append(others, name)
		}
		return err
	})
	return others, blocks, err
}

// whole [none]: nothing half-written lies in TESSERA_HOME, with none no block either.
func whole(ts *testscript.TestScript, neg bool, args []string) {
	others, blocks, err := leftovers(ts.Getenv("TESSERA_HOME"))
	if err != nil || len(others) > 0 || len(args) > 0 && blocks > 0 {
		ts.Fatalf("TESSERA_HOME holds %q and %d blocks (%v)", others, blocks, err)
	}
}

func receipt(ts *testscript.TestScript, file string) (r tessera.Receipt) {
	if err := json.Unmarshal([]byte(ts.ReadFile(file)), &r); err != nil {
		ts.Fatalf("%s: %v", file, err)
	}
	return r
}

// sources 'A B…': where the blocks of the receipt on stdout came from.
func sources(ts *testscript.TestScript, neg bool, args []string) {
	var got []string
	for _, b := range receipt(ts, "stdout").Blocks {
		got = append(got, b.Source)
	}
	if strings.Join(got, " ") != args[0] {
		ts.Fatalf("blocks are %q, want %s", got, args[0])
	}
}

// same answer|text FILE: the receipt, or the text, on stdout has the answer of the receipt in FILE.
func same(ts *testscript.TestScript, neg bool, args []string) {
	want, got := receipt(ts, args[1]).Answer, ""
	if args[0] == "answer" {
		got = receipt(ts, "stdout").Answer
	} else {
		got = strings.TrimSuffix(ts.ReadFile("stdout"), "\n")
	}
	if got != want || want == "" {
		ts.Fatalf("answer %q, want %q", got, want)
	}
}

// blockid TOKENS sets BLOCK to the id of the block with so many tokens, from the list that kv ls printed.
func blockID(ts *testscript.TestScript, neg bool, args []string) {
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		if f := strings.Fields(line); f[1] == args[0] {
			ts.Setenv("BLOCK", f[0])
			return
		}
	}
	ts.Fatalf("no block of %s tokens", args[0])
}

// flip ID turns a bit of the block's file.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	path := filepath.Join(ts.Getenv("TESSERA_HOME"), "kv", args[0][:2], args[0]+".kv")
	b, err := os.ReadFile(path)
	ts.Check(err)
	b[len(b)/2] ^= 1
	ts.Check(os.WriteFile(path, b, 0o600))
}
