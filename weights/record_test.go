package weights

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func someRecord() *Record {
	return &Record{
		Schema: 1, Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Model: Hash{1, 2}, Adapter: &Hash{3}, Prompt: "p/1",
		Sets: []Scores{
			{Dataset: "nq", N: 500, Passages: 10, Full: 0.28, FullInterval: [2]float64{0.24, 0.32}, Block: 0.25, BlockInterval: [2]float64{0.21, 0.29}},
			{Dataset: "hotpotqa", N: 400, Passages: 10, Full: 0.20, Block: 0.19},
		},
	}
}

func TestRecord_SurvivesItsFile(t *testing.T) {
	r := someRecord()
	path := RecordPath(filepath.Join(t.TempDir(), "records"), r.Model, (*[32]byte)(r.Adapter))
	if filepath.Base(path) != "0102000000000000-0300000000000000.json" {
		t.Errorf("its name is %s", filepath.Base(path))
	}
	for range 2 { // the second one replaces the first
		if err := r.Write(path); err != nil {
			t.Fatal(err)
		}
		got, err := ReadRecord(path)
		if err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, %v; want %+v", got, err, r)
		}
		r.Adapter = nil
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("the folder holds %q", left)
	}
}

func TestRecord_Passes_WhereBlockIsAtMostTheMarginBelow_OnAverage(t *testing.T) {
	r := someRecord() // gaps of 3 and 1 points
	if gap := r.Gap(); gap < 1.999 || gap > 2.001 {
		t.Errorf("gap %v, want 2", gap)
	}
	for margin, want := range map[float64]bool{2: true, 1.9: false, 5: true, -1: false} {
		if r.Margin = &margin; r.Passes() != want {
			t.Errorf("margin %v: passes is %v", margin, !want)
		}
	}
	r.Sets[0].Block = 0.35 // better than full on one set makes up for the other
	if margin := -2.0; !(&Record{Margin: &margin, Sets: r.Sets}).Passes() {
		t.Errorf("gap %v does not pass a margin of -2", r.Gap())
	}
	if r.Margin = nil; r.Allowed() != Margin {
		t.Errorf("without a margin %v is allowed, want %v", r.Allowed(), Margin)
	}
	if (&Record{}).Passes() {
		t.Error("a record of nothing passes")
	}
}

func TestRecord_Of_OtherWeightsOrPrompts_SaysWhy(t *testing.T) {
	r := someRecord()
	model, adapter := [32]byte(r.Model), [32]byte(*r.Adapter)
	if err := r.Of(model, &adapter, "p/1"); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		model   [32]byte
		adapter *[32]byte
		prompt  string
		want    string
	}{
		{model, &adapter, "p/2", `prompt format "p/1", but prompts have "p/2"`},
		{[32]byte{9}, &adapter, "p/1", "another model, 0102"},
		{model, nil, "p/1", "another adapter"},
		{model, &[32]byte{9}, "p/1", "another adapter"},
	} {
		if err := r.Of(tt.model, tt.adapter, tt.prompt); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	r.Adapter = nil
	if err := r.Of(model, &adapter, "p/1"); err == nil {
		t.Error("a record of the bare model passes for one of an adapter")
	}
}

func TestReadRecord_WhatIsWrong_IsNamed(t *testing.T) {
	whole := `{"schema":1,"date":"2026-01-02T03:04:05Z","model_fingerprint":"` + strings.Repeat("ab", 32) + `","adapter_fingerprint":null,"prompt_format":"p/1",` +
		`"sets":[{"dataset":"nq","n":5,"full":0.5,"block":0.4}]}`
	for _, tt := range []struct{ old, new, want string }{
		{whole, "{", "not an evaluation record"},
		{whole, "", "not an evaluation record"},
		{`"schema":1`, `"schema":2`, "schema: found 2, expected 1"},
		{`"schema":1`, `"schema":1,"parts":-3`, "parts: found -3, expected at least 1"},
		{`ab"`, `a"`, "found 63 digits of a hash, expected 64"},
		{`abab`, `xyxy`, "record: not an evaluation record"},
		{`"p/1"`, `""`, "prompt_format: is missing"},
		{`"model_fingerprint"`, `"model"`, "model_fingerprint: is missing"},
		{`[{"dataset":"nq","n":5,"full":0.5,"block":0.4}]`, `[]`, "sets: found none"},
		{`"n":5`, `"n":0`, `sets[0]: found "nq", n 0`},
		{`0.4`, `1.4`, "block 1.4"},
		{`"nq"`, `""`, `sets[0]: found ""`},
	} {
		path := filepath.Join(t.TempDir(), "r.json")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(whole, tt.old, tt.new)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadRecord(path)
		var typed *Error
		if !errors.As(err, &typed) || typed.Path != path || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s → %s: got %v, want %q", tt.old, tt.new, err, tt.want)
		}
	}
	path := filepath.Join(t.TempDir(), "r.json")
	if err := os.WriteFile(path, []byte(whole), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRecord(path); err != nil {
		t.Errorf("the whole one: %v", err)
	}
	if err := (&Record{Schema: 1}).Write(path); err == nil {
		t.Error("a record of nothing is written")
	}
	if _, err := ReadRecord(filepath.Join(t.TempDir(), "none.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
