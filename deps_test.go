package tessera_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tessera-llm/tessera"

// ranks is the import table: a package may import those of the lines above its own, and no other of this module.
// What the tests of a package import is not restricted.
var ranks = [][]string{
	{"internal/home", "internal/testenv", "adapters"},
	{"internal/kernel", "internal/vfs", "tokenizer", "pull", "grammar", "cite"},
	{"weights", "attention", "prompt", "kv", "corpus"},
	{"model"},
	{"engine", "train"},
	{""}, // package tessera
	{"eval", "bench", "server"},
	{"cmd/tessera"},
}

// testOnly are packages that no package but a test may import.
var testOnly = []string{"internal/testenv"}

func TestImports_GoOnlyFromHigherToLowerRank(t *testing.T) {
	// Files of every platform and of both builds count: an import in the arm64 file is an import.
	for _, build := range []struct{ os, arch, tags string }{{"linux", "amd64", ""}, {"linux", "amd64", "purego"}, {"linux", "arm64", ""}, {"darwin", "arm64", ""}} {
		packages := listPackages(t, build.os, build.arch, build.tags)
		for _, problem := range violations(packages) {
			t.Errorf("%s/%s %s: %s", build.os, build.arch, build.tags, problem)
		}
	}
}

func TestImports_TheCheckFindsWhatIsWrong(t *testing.T) {
	for _, test := range []struct {
		name     string
		packages map[string][]string
		want     string // "" for a tree that is right
	}{
		{"downwards, and others' packages", map[string][]string{"kv": {"os", module + "/internal/vfs"}, "cmd/tessera": {module, "example.com/x"}}, ""},
		{"upwards", map[string][]string{"internal/kernel": {module + "/model"}}, "internal/kernel imports model"},
		{"within a rank", map[string][]string{"weights": {module + "/kv"}}, "weights imports kv"},
		{"the root from below", map[string][]string{"engine": {module}}, `engine imports ""`},
		{"a test's package", map[string][]string{"model": {module + "/internal/testenv"}}, "model imports internal/testenv"},
		{"not in the table", map[string][]string{"manager": nil}, "manager is not in the table"},
		{"imports one not in the table", map[string][]string{"kv": {module + "/manager"}}, "kv imports manager"},
	} {
		got := violations(test.packages)
		if test.want == "" && len(got) != 0 || test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], test.want)) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// violations says what is wrong with packages, a map from each package of this module to its imports.
func violations(packages map[string][]string) (problems []string) {
	rank := func(pkg string) int {
		return slices.IndexFunc(ranks, func(row []string) bool { return slices.Contains(row, pkg) })
	}
	for pkg, imports := range packages {
		if rank(pkg) < 0 {
			problems = append(problems, fmt.Sprintf("%s is not in the table: give it its rank there", pkg))
			continue
		}
		for _, path := range imports {
			imported, ours := inModule(path)
			switch {
			case !ours:
			case slices.Contains(testOnly, imported):
				problems = append(problems, fmt.Sprintf("%s imports %s, which is for tests", pkg, imported))
			case rank(imported) < 0 || rank(imported) >= rank(pkg):
				problems = append(problems, fmt.Sprintf("%s imports %s, which is not of a lower rank", pkg, name(imported)))
			}
		}
	}
	slices.Sort(problems)
	return problems
}

func name(pkg string) string {
	if pkg == "" {
		return `"" (package tessera)`
	}
	return pkg
}

func inModule(path string) (pkg string, ours bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

// listPackages asks the go command for every package of the module and its imports, as built for one platform.
func listPackages(t *testing.T, goos, goarch, tags string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-tags", tags, "-json=ImportPath,Imports", "./...")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+goos, "GOARCH="+goarch)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	packages := map[string][]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkg, ours := inModule(p.ImportPath)
		if !ours {
			t.Fatalf("go list names %s, which is not in %s", p.ImportPath, module)
		}
		packages[pkg] = p.Imports
	}
	if len(packages) < 2 {
		t.Fatalf("go list found %d packages", len(packages))
	}
	return packages
}
