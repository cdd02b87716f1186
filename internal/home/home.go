// Package home says where the user's files live: models, stored keys and values, memos and data, each a folder of its own.
//
// TESSERA_HOME puts all of them under one folder. Without it, what can be made again (models, kv, cache) lives in the user's
// cache directory, and what cannot (collections, evaluation records) in the user's data directory. Nothing is created here.
package home

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Models is the folder that `tessera pull` fills.
func Models() (string, error) { return cached("models") }

// KV is the folder of the block store.
func KV() (string, error) { return cached("kv") }

// Cache is the folder of memos, such as the fingerprints of model files: losing it costs time only.
func Cache() (string, error) { return cached("cache") }

// Data is the folder of what cannot be made again, or only by long measuring: collections and evaluation records.
func Data() (string, error) {
	if dir, ok, err := override(); ok {
		return filepath.Join(dir, "data"), err
	}
	if runtime.GOOS == "darwin" {
		dir, err := os.UserConfigDir()
		return under(dir, err, "tessera")
	}
	// The XDG rules: a relative path in the variable is not valid and must be ignored.
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tessera"), nil
	}
	dir, err := os.UserHomeDir()
	return under(dir, err, ".local", "share", "tessera")
}

func cached(name string) (string, error) {
	if dir, ok, err := override(); ok {
		return filepath.Join(dir, name), err
	}
	dir, err := os.UserCacheDir()
	return under(dir, err, "tessera", name)
}

// override is TESSERA_HOME as an absolute path, so that a process that changes its folder, or starts another elsewhere,
// keeps finding the same files.
func override() (dir string, ok bool, err error) {
	dir = os.Getenv("TESSERA_HOME")
	if dir == "" {
		return "", false, nil
	}
	dir, err = filepath.Abs(dir)
	return dir, true, err
}

func under(dir string, err error, elem ...string) (string, error) {
	if err != nil {
		return "", fmt.Errorf("no home for Tessera's files: %w; set TESSERA_HOME to a folder", err)
	}
	return filepath.Join(append([]string{dir}, elem...)...), nil
}
