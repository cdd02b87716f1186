package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func deployed(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What deploy/ gives tessera to run is what it takes.
func TestDeploy_CommandsAndFlags_AreThere(t *testing.T) {
	if err := configure(serveCommand(), filepath.Join("..", "..", "deploy", "serve.yaml")); err != nil {
		t.Error(err)
	}
	unit := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/tessera (serve .*)$`).FindStringSubmatch(deployed(t, "tessera.service"))
	if unit == nil {
		t.Fatal("tessera.service: no ExecStart")
	}
	commands := [][]string{strings.Fields(unit[1])}
	documents := yaml.NewDecoder(strings.NewReader(deployed(t, "kubernetes.yaml")))
	kinds := map[string]bool{}
	for {
		var d struct {
			Kind string
			Data map[string]string
			Spec struct {
				Template struct {
					Spec struct {
						Init       []struct{ Args []string } `yaml:"initContainers"`
						Containers []struct{ Args []string }
					}
				}
			}
		}
		if err := documents.Decode(&d); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		kinds[d.Kind] = true
		for _, c := range append(d.Spec.Template.Spec.Init, d.Spec.Template.Spec.Containers...) {
			commands = append(commands, c.Args)
		}
		if file := d.Data["serve.yaml"]; file != "" {
			path := filepath.Join(t.TempDir(), "serve.yaml")
			if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := configure(serveCommand(), path); err != nil {
				t.Error(err)
			}
		}
	}
	if !kinds["Deployment"] || !kinds["Service"] || !kinds["ConfigMap"] || len(commands) != 3 {
		t.Errorf("kubernetes.yaml has %v, commands %q", kinds, commands)
	}
	for _, args := range commands {
		cmd := serveCommand()
		if args[0] == "pull" {
			cmd = pullCommand()
		}
		if err := cmd.ParseFlags(args[1:]); err != nil || cmd.Name() != args[0] {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, variable := range regexp.MustCompile(`TESSERA_SERVE_[A-Z_]+`).FindAllString(deployed(t, "Dockerfile"), -1) {
		if name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(variable, "TESSERA_SERVE_"), "_", "-")); serveCommand().Flag(name) == nil {
			t.Errorf("Dockerfile: %s is no flag of serve", variable)
		}
	}
	if !strings.Contains(deployed(t, "Dockerfile"), "USER 65532") {
		t.Error("Dockerfile: the image runs as root")
	}
}
