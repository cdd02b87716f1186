package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/pull"
)

func runPull(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := pullCommand()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out, errOut bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(context.Background())
	return out.String(), errOut.String(), err
}

func TestPullCommand_URL_PrintsPathAndSource(t *testing.T) {
	home := t.TempDir()
	t.Setenv("TESSERA_HOME", home)
	s := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(testenv.Tiny("tiny-tied.gguf")))))
	defer s.Close()
	url := s.URL + "/tiny-tied.gguf"
	stdout, stderr, err := runPull(t, url)
	if err != nil {
		t.Fatal(err)
	}
	path, rest, _ := strings.Cut(stdout, "\n")
	if _, err := os.Stat(path); err != nil || !strings.HasPrefix(path, filepath.Join(home, "models")) {
		t.Errorf("first line %q is no file under %s (%v)", path, home, err)
	}
	if !strings.Contains(rest, "served by "+url) || stderr != "" {
		t.Errorf("printed %q and, on stderr, %q; want the source and, without a terminal, nothing", rest, stderr)
	}
	if stdout, _, err = runPull(t, url); err != nil || !strings.Contains(stdout, "already here") {
		t.Errorf("again: %q, %v", stdout, err)
	}
}

func TestPullCommand_JSON_IsOneDocument(t *testing.T) {
	t.Setenv("TESSERA_HOME", t.TempDir())
	tiny := testenv.Tiny("tiny-tied.gguf")
	stdout, _, err := runPull(t, "--json", tiny)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	fi, err := os.Stat(tiny)
	if err != nil {
		t.Fatal(err)
	}
	if got["schema"] != 1.0 || got["source"] != tiny || got["bytes"] != float64(fi.Size()) || got["cached"] != false ||
		len(got["sha256"].(string)) != 64 || filepath.Base(got["path"].(string)) != "tiny-tied.gguf" || len(got) != 6 {
		t.Errorf("got %s", stdout)
	}
}

func TestPullCommand_UnknownName_IsAnErrorWithAHint(t *testing.T) {
	t.Setenv("TESSERA_HOME", t.TempDir())
	stdout, _, err := runPull(t, "missing")
	var e *pull.Error
	if !errors.As(err, &e) || e.Error() != "missing: no such model" || e.Hint() == "" || stdout != "" {
		t.Errorf("got %v and %q on stdout", err, stdout)
	}
}

func TestPullCommand_NoArgument_IsWrongUsage(t *testing.T) {
	if _, _, err := runPull(t); err == nil {
		t.Error("accepted")
	}
}
