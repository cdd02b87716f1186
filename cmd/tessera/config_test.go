package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigure_CommandLineThenEnvironmentThenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serve.yaml")
	if err := os.WriteFile(path, []byte("# the server\naddr: 127.0.0.1:1\nactive: 3\nwaiting: 5\ngrace: 2m\nquiet: true\nmemory: 1.5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TESSERA_SERVE_ADDR", "127.0.0.1:2")
	t.Setenv("TESSERA_SERVE_WAITING", "7")
	t.Setenv("TESSERA_SERVE_WITHOUT_KEYS", "true")
	cmd := serveCommand()
	if err := cmd.ParseFlags([]string{"--addr", "127.0.0.1:3"}); err != nil {
		t.Fatal(err)
	}
	if err := configure(cmd, path); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"addr": "127.0.0.1:3", "waiting": "7", "active": "3", "grace": "2m0s", "quiet": "true", "without-keys": "true", "memory": "1.5", "deadline": "0s"} {
		if got := cmd.Flag(name).Value.String(); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func TestConfigure_WhatIsWrong_IsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serve.yaml")
	for text, want := range map[string]string{
		"addr: x\nport: 8080\n": `serve.yaml: line 2: there is no flag "port"; there are active, `,
		"active: many\n":        `serve.yaml: active: `,
		"keys: [a, b]\n":        "serve.yaml: line 1: keys: want one value",
		"- addr\n":              "want a line FLAG: VALUE",
		"config: other.yaml\n":  `there is no flag "config"`,
		"addr: a\naddr: b\n":    "already defined",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := configure(serveCommand(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	t.Setenv("TESSERA_SERVE_RATE", "often")
	if err := configure(serveCommand(), ""); err == nil || !strings.Contains(err.Error(), "TESSERA_SERVE_RATE: rate: ") {
		t.Errorf("in the environment: %v", err)
	}
}
