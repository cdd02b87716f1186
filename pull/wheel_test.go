package pull

import (
	"archive/zip"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakePip puts scripts on an otherwise bare PATH. Each is the body of a shell script that sees pip's arguments; $dest is the
// folder of --dest. Every script answers --version.
func fakePip(t *testing.T, scripts map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, body := range scripts {
		script := "#!/bin/sh\n" + body
		if !strings.HasPrefix(body, "exit") {
			script = "#!/bin/sh\nPATH=/usr/bin:/bin\n" + `case "$*" in *--version) echo pip 1.0; exit;; esac
while [ $# -gt 0 ]; do case "$1" in --dest) dest=$2;; esac; last=$1; shift; done
` + body
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	return dir
}

// makeWheel writes a wheel with the given files.
func makeWheel(t *testing.T, files map[string][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny_model-1.2-py3-none-any.whl")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	for name, content := range files {
		w, err := z.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWheel_PipFetches_FileIsTakenOut(t *testing.T) {
	content := modelBytes(200_000, 1)
	for _, test := range []struct{ name, ref, dir string }{
		{"version and file", "pip:tiny-model==1.2:tiny.gguf", "tiny-model==1.2"},
		{"only file of its kind", "pip:tiny-model", "tiny-model"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := testPuller(t)
			whl := makeWheel(t, map[string][]byte{"tiny_model/tiny.gguf": content, "tiny_model/__init__.py": []byte("x = 1\n")})
			bin := fakePip(t, map[string]string{"pip3": "exit 127", "pip": `echo "$last" >> "$0.asked"; echo "Collecting $last"; cp ` + whl + ` "$dest"`})
			r, err := p.pull(context.Background(), test.ref)
			mustHold(t, r, err, content)
			if want := filepath.Join(p.Dir, "pip", test.dir, "tiny.gguf"); r.Path != want || r.Source != "pip:"+test.dir {
				t.Errorf("got %s from %s, want %s", r.Path, r.Source, want)
			}
			again, err := p.pull(context.Background(), test.ref)
			mustHold(t, again, err, content)
			asked, _ := os.ReadFile(filepath.Join(bin, "pip.asked"))
			if string(asked) != test.dir+"\n" {
				t.Errorf("pip was asked for %q, want %q once", asked, test.dir)
			}
			if path, err := resolve(p.Dir, test.ref); err != nil || path != r.Path {
				t.Errorf("resolve(%s) = %s, %v; want %s", test.ref, path, err, r.Path)
			}
			mustBeClean(t, p.Dir)
		})
	}
}

func TestWheel_HubFails_PipServesTheAlias(t *testing.T) {
	p, notes := testPuller(t)
	content := modelBytes(200_000, 1)
	whl := makeWheel(t, map[string][]byte{"tiny_model/tiny.gguf": content})
	fakePip(t, map[string]string{"python3": `cp ` + whl + ` "$dest"`})
	s := newServer(t, content)
	s.status = 404
	t.Setenv("HF_ENDPOINT", s.URL)
	r, err := p.obtain(context.Background(), aliasOf(p, content, hub{"owner/repo", "main", "tiny.gguf"}, wheel{pkg: "tiny-model", version: "1.2", file: "tiny.gguf"}))
	mustHold(t, r, err, content)
	if r.Source != "pip:tiny-model==1.2" || len(*notes) != 1 || !strings.Contains((*notes)[0], "hf:owner/repo:tiny.gguf: 404") {
		t.Errorf("served by %s after notes %q", r.Source, *notes)
	}
}

func TestWheel_Failures_SayWhat(t *testing.T) {
	content := modelBytes(200_000, 1)
	one := makeWheel(t, map[string][]byte{"m/tiny.gguf": content})
	two := makeWheel(t, map[string][]byte{"m/tiny.gguf": content, "m/huge.gguf": content})
	evil := makeWheel(t, map[string][]byte{"../../../m/..gguf": content, "m/..\\x.gguf": content})
	text := makeWheel(t, map[string][]byte{"m/tiny.gguf": []byte("hello")})
	damaged := filepath.Join(t.TempDir(), "m-1-py3-none-any.whl")
	b, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	b[1000] ^= 1
	if err := os.WriteFile(damaged, b, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		scripts map[string]string
		ref     string
		want    []string
	}{
		{"no pip", nil, "pip:tiny-model", []string{"none of pip3, pip and 'python3 -m pip' runs here", "hint: install pip"}},
		{"pip fails", map[string]string{"pip": `echo Looking; echo 'ERROR: No matching distribution found' >&2; echo noise; exit 1`}, "pip:tiny-model", []string{"pip: exit status 1: ERROR: No matching distribution found"}},
		{"pip brings nothing", map[string]string{"pip": `exec true`}, "pip:tiny-model", []string{"pip left 0 wheels, expected 1"}},
		{"two files", map[string]string{"pip": `cp ` + two + ` "$dest"`}, "pip:tiny-model", []string{"has 2 such files", "tiny.gguf", "hint: name one: 'tessera pull pip:tiny-model:"}},
		{"no such file", map[string]string{"pip": `cp ` + one + ` "$dest"`}, "pip:tiny-model:other.gguf", []string{"has no file other.gguf"}},
		{"names that lead out", map[string]string{"pip": `cp ` + evil + ` "$dest"`}, "pip:tiny-model", []string{"has no file *.gguf"}},
		{"no GGUF", map[string]string{"pip": `cp ` + text + ` "$dest"`}, "pip:tiny-model", []string{`it begins with "hell", expected "GGUF"`}},
		{"damaged", map[string]string{"pip": `cp ` + damaged + ` "$dest"`}, "pip:tiny-model", []string{"zip: checksum error"}},
		{"no zip", map[string]string{"pip": `echo hi > "$dest/m-1-py3-none-any.whl"`}, "pip:tiny-model", []string{"m-1-py3-none-any.whl: zip: not a valid zip file"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _ := testPuller(t)
			fakePip(t, test.scripts)
			_, err := p.pull(context.Background(), test.ref)
			mustFail(t, err, append(test.want, test.ref+": ")...)
		})
	}
}

func TestWheel_IndexDoesNotAnswer_PipIsEnded(t *testing.T) {
	p, _ := testPuller(t)
	p.answer = 300 * time.Millisecond
	// The sleep is pip's child: it must end too, or Wait would hang on its end of the pipe.
	fakePip(t, map[string]string{"pip": `echo "WARNING: Retrying"; sleep 60; echo late`})
	start := time.Now()
	_, err := p.pull(context.Background(), "pip:tiny-model")
	mustFail(t, err, "pip:tiny-model: did not answer in ")
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
	mustBeClean(t, p.Dir)
}

func TestWheel_DownloadStalls_PipIsEnded(t *testing.T) {
	p, _ := testPuller(t)
	p.stall = 300 * time.Millisecond
	var done int64
	p.Progress = func(d, total int64) { done = d }
	fakePip(t, map[string]string{"pip": `echo "Collecting x"; echo 12345 > "$TMPDIR/x.whl"; sleep 60`})
	_, err := p.pull(context.Background(), "pip:tiny-model")
	mustFail(t, err, "pip:tiny-model: sent nothing for 300ms")
	if done != 6 {
		t.Errorf("progress ended at %d bytes, want 6", done)
	}
	mustBeClean(t, p.Dir)
}
