package pull

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tessera-llm/tessera/internal/testenv"
)

func TestResolve_UnknownName_IsNoSuchModel(t *testing.T) {
	t.Setenv("TESSERA_HOME", t.TempDir())
	for _, ref := range []string{"missing", "missing.gguf", "./missing.gguf", "../missing", "", "smollm3", "ftp://host/x.gguf", "SMOLLM2", "c:x.gguf"} {
		_, err := Resolve(ref)
		if !errors.Is(err, ErrNoModel) {
			t.Errorf("%q: got %v, want ErrNoModel", ref, err)
			continue
		}
		mustFail(t, err, ref+": no such model", "hint: a model is smollm2, the path of a .gguf file, hf:OWNER/REPO[:FILE], pip:")
	}
}

func TestResolve_KnownButNotPulled_SaysHowToPull(t *testing.T) {
	dir := t.TempDir()
	for _, ref := range []string{"smollm2", "hf:owner/repo", "hf:owner/repo:x.gguf", "pip:pkg", "pip:pkg==1.0:x.gguf", "https://host/x.gguf"} {
		_, err := resolve(dir, ref)
		mustFail(t, err, ref+": not pulled yet", "hint: 'tessera pull "+ref+"' fetches it")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("resolving left %v", entries)
	}
}

func TestResolve_WrongFileInPlace_IsNotUsed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, aliases["smollm2"].name), []byte("GGUF"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := resolve(dir, "smollm2")
	mustFail(t, err, "smollm2: ", "is not the file it should be (4 bytes, expected 98362432 of SHA-256 b179c95", "hint: 'tessera pull smollm2'")
}

func TestResolve_Path_IsTakenAsItIs(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"here.gguf", "local/pulled.gguf"} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("GGUF"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, ref := range []string{path, filepath.Base(path)} { // the path, and the name in the models folder
			if got, err := resolve(dir, ref); err != nil || got != path {
				t.Errorf("resolve(%s) = %s, %v; want %s", ref, got, err, path)
			}
		}
	}
	_, err := resolve(t.TempDir(), dir)
	mustFail(t, err, dir+": no file but a folder")
}

func TestLocate_NamesThatLeadOut_AreRefused(t *testing.T) {
	dir := t.TempDir()
	for _, ref := range []string{
		"hf:", "hf:owner", "hf:owner/repo:", "hf:../repo", "hf:owner/..", "hf:./repo", "hf:owner/repo/x", "hf:/owner/repo",
		"hf:datasets/owner/repo", "hf:datasets/owner/repo:", "hf:datasets/owner/repo:../x.jsonl", "hf:datasets/../repo:x.jsonl", "hf:models/owner/repo:x.gguf",
		"hf:owner/repo:../x.gguf", "hf:owner/repo:/etc/x.gguf", "hf:owner/repo:a/../../x.gguf", "hf:owner/repo:a//x.gguf", "hf:owner/repo:.x.gguf",
		"hf:owner/repo:a\\x.gguf", "hf:owner/repo:x\x00.gguf", "hf:owner/repo:x.part", "hf:owner/repo:.",
		"pip:", "pip:..", "pip:../x", "pip:--help", "pip:-r", "pip:x==", "pip:x==../y", "pip:x==-r", "pip:x==1:../y.gguf", "pip:x:a/y.gguf", "pip:x>=1", "pip:x @ file", "pip:x\n",
		"http://", "https://host", "https://host/", "https://host/..", "https://host/a/%2e%2e", "https://host/%2Fetc%2Fx.gguf/..", "https://host/.hidden", "https://host/a%5Cb",
	} {
		tgt, err := locate(dir, ref)
		if err == nil {
			t.Errorf("%q: taken as %s", ref, tgt.path())
		}
	}
	for _, ref := range []string{"smollm2", "hf:owner/repo:a/b.gguf", "hf:o.w-n_er/re..po", "hf:datasets/owner/repo:a/b.jsonl", "pip:x", "pip:x==1.0+cpu:y.gguf", "https://host/a/b.gguf?c=../../d", "https://host/%2e%2e/b.gguf"} {
		tgt, err := locate(dir, ref)
		if err != nil {
			t.Errorf("%q: %v", ref, err)
			continue
		}
		if inside, err := filepath.Rel(dir, tgt.path()); err != nil || !filepath.IsLocal(inside) {
			t.Errorf("%q: goes to %s, outside of %s", ref, tgt.path(), dir)
		}
	}
}

func TestLocate_URL_SecretsAreNotShown(t *testing.T) {
	tgt, err := locate(t.TempDir(), "https://user:pass@host/x.gguf?token=abc")
	if err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{tgt.ref, tgt.sources[0].String()} {
		if strings.Contains(shown, "pass") || strings.Contains(shown, "abc") {
			t.Errorf("shows %s", shown)
		}
	}
	other, err := locate("x", "https://user:pass@host/x.gguf?token=abd")
	if err != nil || filepath.Base(other.dir) == filepath.Base(tgt.dir) {
		t.Errorf("two URLs share %s (%v)", other.dir, err)
	}
}

func TestPull_LocalFile_IsCopiedOnce(t *testing.T) {
	p, _ := testPuller(t)
	content := modelBytes(300_000, 1)
	path := filepath.Join(t.TempDir(), "mine.gguf")
	pull := func(content []byte, cached bool) {
		t.Helper()
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := p.pull(context.Background(), path)
		mustHold(t, r, err, content)
		if want := filepath.Join(p.Dir, "local", "mine.gguf"); r.Path != want || r.Cached != cached || r.Source != path {
			t.Errorf("got %+v, want %s, cached %v", r, want, cached)
		}
	}
	pull(content, false)
	pull(content, true)
	pull(modelBytes(300_000, 2), false)
	mustBeClean(t, p.Dir)

	inside := filepath.Join(p.Dir, "local", "mine.gguf")
	if r, err := p.pull(context.Background(), inside); err != nil || !r.Cached || r.Path != inside {
		t.Errorf("a file of the models folder: %+v, %v; want it as it is", r, err)
	}
}

func TestPull_LocalFileOfAnAlias_TakesTheAliasPlace(t *testing.T) {
	model := testenv.Model(t)
	if testing.Short() {
		t.Skip("copies the default model")
	}
	p, _ := testPuller(t)
	r, err := p.pull(context.Background(), model)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := resolve(p.Dir, "smollm2"); err != nil || got != r.Path {
		t.Errorf("resolve(smollm2) = %s, %v; want %s", got, err, r.Path)
	}
}

func TestPull_LocalFile_ThatIsNoModel_IsRefused(t *testing.T) {
	p, _ := testPuller(t)
	path := filepath.Join(t.TempDir(), "notes.gguf")
	if err := os.WriteFile(path, []byte("hi"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := p.pull(context.Background(), path)
	mustFail(t, err, path+": notes.gguf is no GGUF file: it begins with \"hi\"")
	mustBeClean(t, p.Dir)
}
