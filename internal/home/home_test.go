package home

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

var folders = map[string]func() (string, error){"models": Models, "kv": KV, "cache": Cache, "data": Data}

func TestHome_TesseraHome_HoldsEverything(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TESSERA_HOME", dir)
	for name, folder := range folders {
		if got, err := folder(); err != nil || got != filepath.Join(dir, name) {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, filepath.Join(dir, name))
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("asking created %v", entries)
	}
}

func TestHome_RelativeTesseraHome_BecomesAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv("TESSERA_HOME", "here")
	for name, folder := range folders {
		if got, err := folder(); err != nil || !filepath.IsAbs(got) {
			t.Errorf("%s: got %q, %v; want an absolute path", name, got, err)
		}
	}
}

func TestHome_Default_SeparatesCacheFromData(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the XDG variables are Linux's")
	}
	cache, data := t.TempDir(), t.TempDir()
	t.Setenv("TESSERA_HOME", "")
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("XDG_DATA_HOME", data)
	want := map[string]string{
		"models": filepath.Join(cache, "tessera", "models"),
		"kv":     filepath.Join(cache, "tessera", "kv"),
		"cache":  filepath.Join(cache, "tessera", "cache"),
		"data":   filepath.Join(data, "tessera"),
	}
	for name, folder := range folders {
		if got, err := folder(); err != nil || got != want[name] {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want[name])
		}
	}
}

func TestHome_RelativeXDG_IsIgnored(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the XDG variables are Linux's")
	}
	home := t.TempDir()
	t.Setenv("TESSERA_HOME", "")
	t.Setenv("HOME", home)
	t.Setenv("XDG_DATA_HOME", "relative")
	if got, err := Data(); err != nil || got != filepath.Join(home, ".local", "share", "tessera") {
		t.Errorf("got %q, %v; want it under %s", got, err, home)
	}
}

func TestHome_NoHomeAtAll_SaysWhatToSet(t *testing.T) {
	for _, name := range []string{"TESSERA_HOME", "HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"} {
		t.Setenv(name, "")
	}
	for name, folder := range folders {
		if _, err := folder(); err == nil || !strings.Contains(err.Error(), "set TESSERA_HOME") {
			t.Errorf("%s: got error %v; want advice to set TESSERA_HOME", name, err)
		}
	}
}
