// Package testenv finds what tests need and the repository does not hold: the shared vectors and the default model.
package testenv

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// modelFile is the default model's file as `tessera pull smollm2` keeps it.
const modelFile = "SmolLM2-135M-Instruct.Q4_1.gguf"

// Shared returns the path of a file or folder of the shared vectors (the folder TESSERA_SHARED, by default `shared` beside the
// repository), and skips the test with a message where it does not exist.
func Shared(t testing.TB, elem ...string) string {
	t.Helper()
	dir := os.Getenv("TESSERA_SHARED")
	if dir == "" {
		dir = filepath.Join(root(), "..", "shared")
	} else if !filepath.IsAbs(dir) {
		dir = filepath.Join(root(), dir)
	}
	path := filepath.Join(append([]string{dir}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no shared vectors at %s; set TESSERA_SHARED to the folder that holds them", path)
	}
	return path
}

// Model returns the path of the default model, and skips the test with a message where it was not pulled.
func Model(t testing.TB) string {
	t.Helper()
	for _, dir := range modelDirs() {
		path := filepath.Join(dir, modelFile)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Skip("the default model is not here; `go run ./cmd/tessera pull smollm2` fetches it")
	return ""
}

// Tiny returns the path of one of the tiny random models in testdata ("tiny-tied.gguf" or "tiny-untied.gguf").
func Tiny(name string) string { return filepath.Join(root(), "testdata", name) }

func modelDirs() []string {
	if home := os.Getenv("TESSERA_HOME"); home != "" {
		return []string{filepath.Join(home, "models")}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return []string{filepath.Join(cache, "tessera", "models")}
}

func root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}
