package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tessera-llm/tessera/internal/kernel"
	"github.com/tessera-llm/tessera/internal/testenv"
	"github.com/tessera-llm/tessera/kv"
	"github.com/tessera-llm/tessera/model"
	"github.com/tessera-llm/tessera/tokenizer"
	"github.com/tessera-llm/tessera/weights"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tiny is a bench of the tiny model, whose context is 512.
func tiny(t testing.TB) *Bench { return benchOf(t, testenv.Tiny("tiny-tied.gguf")) }

func benchOf(t testing.TB, path string) *Bench {
	t.Helper()
	file, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	m, err := model.New(file)
	if err != nil {
		t.Fatal(err)
	}
	vocab, err := file.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.New(vocab)
	if err != nil {
		t.Fatal(err)
	}
	return &Bench{Model: m, Tok: tok, Folder: t.TempDir(), Runs: 3}
}

func TestTTFT_Rows_SayWhatWasComputedAndWhatWasFound(t *testing.T) {
	b := tiny(t)
	var shares []float64
	b.Progress = func(share float64) { shares = append(shares, share) }
	rows, err := b.TTFT(context.Background(), []int{600, 20, 350}, 50)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, fmt.Sprintln(r.PromptTokens, r.QueryTokens, r.Attention, r.Cache, r.Blocks, r.TimingOnly))
		mustSummarize(t, &r, *r.TTFT, b.Runs)
		computed := r.PromptTokens
		if r.Cache != "none" {
			computed = r.QueryTokens
		}
		matrices, attention := b.Model.FLOPs(computed, r.PromptTokens-computed)
		matrices += b.Model.OutputFLOPs()
		if r.MatrixFLOPs != matrices {
			t.Errorf("%s: %g operations in the matrices, want %g", got[len(got)-1], r.MatrixFLOPs, matrices)
		}
		perToken := b.Model.KVShape(kv.F16, 64).Bytes() / 64
		if found := r.PromptTokens - computed; r.KVBytes < found*perToken || r.KVBytes > (found+2*r.Blocks)*perToken { // blocks are padded
			t.Errorf("%s: %d bytes found, of %d tokens with %d each", got[len(got)-1], r.KVBytes, found, perToken)
		}
		// Cold passages attend to themselves alone: fewer than full attention.
		if total := matrices + attention; r.FLOPs != total && !(r.Attention == "block" && r.Cache == "none" && r.FLOPs < total) {
			t.Errorf("%s: %g operations, want %g", got[len(got)-1], r.FLOPs, total)
		}
	}
	want := []string{
		"600 50 full none 1 true\n", "600 50 block none 7 true\n", "600 50 block disk 7 true\n", "600 50 block ram 7 true\n", "600 50 prefix ram 2 true\n",
		"20 20 full none 1 false\n", "20 20 block ram 1 false\n",
		"350 50 full none 1 false\n", "350 50 block none 4 false\n", "350 50 block disk 4 false\n", "350 50 block ram 4 false\n", "350 50 prefix ram 2 false\n",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if !slices.IsSorted(shares) || len(shares) < len(rows) || math.Abs(shares[len(shares)-1]-1) > 1e-9 {
		t.Errorf("progress is %v, want it to rise to 1", shares)
	}
	if left, err := os.ReadDir(b.Folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if b.Model.Context != 512 {
		t.Errorf("the model's context is %d now", b.Model.Context)
	}
}

func mustSummarize(t *testing.T, r *Row, value float64, runs int) {
	t.Helper()
	if r.Runs != runs || len(r.All) != runs || r.Min != slices.Min(r.All) || r.Max != slices.Max(r.All) || value != median(r.All) || !(r.Min > 0) {
		t.Errorf("%+v: not a summary of %d runs", r, runs)
	}
}

func TestTTFT_Reductions_AreAgainstFullAttention(t *testing.T) {
	p := &ttftPrompt{}
	for _, s := range []struct {
		attention, cache string
		tokens           int
		ms               time.Duration
		flops, matrices  float64
	}{{"full", "none", paperLength, 2000, 1000, 800}, {"block", "ram", paperLength, 50, 100, 8}, {"block", "none", paperLength, 3000, 1000, 800}} {
		p.subjects = append(p.subjects, &subject{times: []time.Duration{s.ms * time.Millisecond}, row: Row{
			PromptTokens: s.tokens, Attention: s.attention, Cache: s.cache, FLOPs: s.flops, MatrixFLOPs: s.matrices,
		}})
	}
	rows := p.rows()
	if rows[0].Against != nil || *rows[1].Against != (Reduction{97.5, 90, 99}) || *rows[2].Against != (Reduction{-50, 0, 0}) {
		t.Errorf("got %v, %v, %v", rows[0].Against, rows[1].Against, rows[2].Against)
	}
	if rows[0].Paper != nil || rows[1].Paper == nil || rows[1].Paper.TTFT != 45 || rows[2].Paper != nil {
		t.Errorf("the paper's figures stand beside %v, %v, %v", rows[0].Paper, rows[1].Paper, rows[2].Paper)
	}
}

func TestSpeed_Rows_AreTokensASecond(t *testing.T) {
	b := tiny(t)
	prefill, err := b.Prefill(context.Background(), []int{16, 700})
	if err != nil {
		t.Fatal(err)
	}
	decode, err := b.Decode(context.Background(), []int{16, 700})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append(prefill, decode...) {
		mustSummarize(t, &r, *r.TokensPerSecond, b.Runs)
		if r.TTFT != nil || r.TimingOnly != (r.PromptTokens == 700) {
			t.Errorf("%+v", r)
		}
	}
	matrices, attention := b.Model.FLOPs(1, 700)
	if want := matrices + attention + b.Model.OutputFLOPs(); decode[1].FLOPs != want {
		t.Errorf("decode: %g operations a token, want %g", decode[1].FLOPs, want)
	}
}

func TestMeasure_LongRuns_AreNotRepeated(t *testing.T) {
	b := &Bench{Runs: 4}
	var order []string
	of := func(name string, d time.Duration) *subject {
		return &subject{work: 1, run: func(context.Context, *subject) (time.Duration, error) {
			order = append(order, name)
			return d, nil
		}}
	}
	quick, slow := of("quick", longRun-1), of("slow", longRun)
	var last float64
	b.Progress = func(share float64) { last = share }
	b.plan([]*subject{quick, slow})
	if err := b.measure(context.Background(), []*subject{quick, slow}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"quick", "slow", "quick", "quick", "quick"}; !slices.Equal(order, want) || last != 1 {
		t.Errorf("ran %v up to %v, want %v up to 1", order, last, want)
	}
}

func TestTTFT_Cancelled_EndsAndCleansUp(t *testing.T) {
	b := tiny(t)
	ctx, cancel := context.WithCancel(context.Background())
	b.Progress = func(float64) { cancel() }
	if _, err := b.TTFT(ctx, []int{300}, 50); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(b.Folder); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestAppendKV_TwoBlocks_KeepTheirRows(t *testing.T) {
	for _, typ := range []kv.Type{kv.F16, kv.Q8} {
		fill := func(n int, first byte) *model.KV {
			x := &model.KV{Shape: kv.Shape{Type: typ, Layers: 2, Heads: 2, Dim: 64, Tokens: n}, Len: n}
			x.Payload = make([]byte, x.Shape.Bytes())
			for i := range x.Payload {
				x.Payload[i] = first + byte(i)
			}
			return x
		}
		one, two, joined := fill(3, 0), fill(5, 100), fill(9, 200)
		joined.Len = 0
		appendKV(joined, one, 3)
		appendKV(joined, two, 4)
		if joined.Len != 7 {
			t.Fatalf("%v: %d tokens, want 7", typ, joined.Len)
		}
		numbers, scales := 128, 0
		if typ == kv.Q8 {
			numbers, scales = 64, 4
		}
		for layer := range 2 {
			for head := range 2 {
				for _, of := range []func(kv.Shape, int, int) (int, int){kv.Shape.K, kv.Shape.V} {
					at, _ := of(joined.Shape, layer, head)
					from1, _ := of(one.Shape, layer, head)
					from2, _ := of(two.Shape, layer, head)
					if want := slices.Concat(one.Payload[from1:][:3*numbers], two.Payload[from2:][:4*numbers]); !bytes.Equal(joined.Payload[at:][:7*numbers], want) {
						t.Fatalf("%v, layer %d, head %d: rows differ", typ, layer, head)
					}
					want := slices.Concat(one.Payload[from1+3*numbers:][:3*scales], two.Payload[from2+5*numbers:][:4*scales])
					if !bytes.Equal(joined.Payload[at+9*numbers:][:7*scales], want) {
						t.Fatalf("%v, layer %d, head %d: scales differ", typ, layer, head)
					}
				}
			}
		}
	}
}

func TestParseLengths(t *testing.T) {
	got, err := ParseLengths("50,512, 1K,32k,1024K")
	if want := []int{50, 512, 1024, 32768, 1 << 20}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "1,", "0", "0K", "-1", "1M", "K", "1.5K", "1025K", "99999999999999999999", "1048577"} {
		if got, err := ParseLengths(bad); err == nil {
			t.Errorf("%q gives %v", bad, got)
		}
	}
	for n, want := range map[int]string{50: "50", 512: "512", 1024: "1K", 1536: "1536", 32768: "32K"} {
		if got := lengthName(n); got != want {
			t.Errorf("%d is called %s, want %s", n, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		of   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		before := slices.Clone(tt.of)
		if got := median(tt.of); got != tt.want || !slices.Equal(tt.of, before) {
			t.Errorf("%v: got %v, want %v", tt.of, got, tt.want)
		}
	}
}

func sample() *Report {
	r := &Report{Head: NewHead("m<odel>.gguf")}
	for i, n := range []int{2048, 50, 512} {
		for j, a := range []string{"full", "block"} {
			ms := float64(n*(2-j)) + float64(i)
			r.Rows = append(r.Rows, Row{Test: TestTTFT, PromptTokens: n, Attention: a, Cache: []string{"none", "ram"}[j], TTFT: &ms, Min: ms - 1, Max: ms + 2, Runs: 3, TimingOnly: n == 2048, Note: []string{"", "odd"}[j]})
		}
	}
	return r
}

func TestFigure_IsWellFormed(t *testing.T) {
	for _, rows := range []int{6, 1} {
		r := sample()
		r.Rows = r.Rows[:rows]
		var svg, pixels bytes.Buffer
		if err := errors.Join(r.WriteFigure(&svg, "svg"), r.WriteFigure(&pixels, "png")); err != nil {
			t.Fatal(err)
		}
		text := svg.String()
		for d := xml.NewDecoder(&svg); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("SVG: %v", err)
			}
		}
		for _, want := range []string{"<svg", "tokens of the prompt", "time to first token, ms", "2K", "full"} {
			if !strings.Contains(text, want) {
				t.Errorf("the SVG of %d rows lacks %q", rows, want)
			}
		}
		if image, err := png.Decode(&pixels); err != nil || image.Bounds().Dx() < 300 {
			t.Errorf("PNG: %v", err)
		}
	}
}

func TestFigure_Series_AreSortedByLength(t *testing.T) {
	all := sample().series()
	if len(all) != 2 || all[0].name != "full" || all[1].name != "block, stored in RAM" {
		t.Fatalf("got %d series", len(all))
	}
	for _, s := range all {
		for i := 1; i < s.Len(); i++ {
			if s.xy[i-1].X >= s.xy[i].X {
				t.Errorf("%s: %v", s.name, s.xy)
			}
		}
	}
}

func TestFigureFormat(t *testing.T) {
	for path, want := range map[string]string{"a.svg": "svg", "b/c.PNG": "png", "x.pdf": "", "svg": "", "": ""} {
		if got, err := FigureFormat(path); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v; want %q", path, got, err, want)
		}
	}
}

func TestTable_MarksAndExplains(t *testing.T) {
	r := sample()
	var out strings.Builder
	if err := r.WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"m<odel>.gguf", "  2K* ", " 2K*** ", " 512** ", "\n* timing only: longer than the model's context\n** odd\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestReport_JSON_HasTheAgreedFields(t *testing.T) {
	b, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Schema  int
		Machine map[string]any
		Model   string
		Rows    []map[string]any
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Schema != 1 || got.Model == "" || got.Machine["cpu"] == "" || got.Machine["path"] != kernel.Path() || len(got.Rows) != 6 {
		t.Errorf("%s", b)
	}
	for _, field := range []string{"test", "prompt_tokens", "query_tokens", "attention", "tokens_per_s", "ttft_ms", "flops", "runs"} {
		if _, ok := got.Rows[0][field]; !ok {
			t.Errorf("a row lacks %s", field)
		}
	}
}

func TestDropPageCache_FileThatIsGone_IsAnError(t *testing.T) {
	if err := dropPageCache([]string{filepath.Join(t.TempDir(), "gone")}); err == nil {
		t.Error("no error")
	}
}

func TestTokens_AreOrdinaryAndSeeded(t *testing.T) {
	b := tiny(t)
	ids := b.tokens(2000, 7)
	for _, id := range ids {
		if b.Tok.IsControl(id) || b.Tok.IsEnd(id) || int(id) >= b.Model.Vocabulary {
			t.Fatalf("id %d", id)
		}
	}
	if !slices.Equal(ids, b.tokens(2000, 7)) || slices.Equal(ids, b.tokens(2000, 8)) {
		t.Error("the seed does not decide")
	}
}

// BenchmarkTTFT times a question over blocks in memory, over the same blocks in files that the page cache does not hold, and over the
// same keys and values as one block, by turns: what position independence costs, and what reading does.
func BenchmarkTTFT(b *testing.B) {
	for _, n := range []int{2 << 10, 8 << 10} {
		b.Run(lengthName(n), func(b *testing.B) {
			bench := benchOf(b, testenv.Model(b))
			t, err := bench.newTTFT(n)
			if err != nil {
				b.Fatal(err)
			}
			defer t.close()
			bench.planned = 1
			p, ctx := t.prompt(n, 50, 0), context.Background()
			if err := t.warmUp(ctx); err != nil {
				b.Fatal(err)
			}
			subjects := map[string]*subject{}
			for _, s := range p.subjects {
				subjects[s.row.Attention+" "+s.row.Cache] = s
			}
			run := func(name string) {
				s := subjects[name]
				d, err := s.run(ctx, s)
				if err != nil {
					b.Fatal(err)
				}
				s.times = append(s.times, d)
			}
			run("block none")
			for b.Loop() {
				for _, name := range []string{"block ram", "prefix ram", "block disk", "prefix ram", "block ram", "block disk"} {
					run(name) // one comes after the disk as often as the other: files that were dropped leave a slower machine behind
				}
			}
			if note := subjects["block disk"].row.Note; note != "" {
				b.Log(note)
			}
			times := map[string]float64{}
			for name, s := range subjects {
				if len(s.times) > 0 {
					r := s.ttft()
					times[name] = *r.TTFT
				}
			}
			for name, s := range subjects {
				if len(s.times) > 0 {
					b.Logf("%-12s median %.1f min %.1f", name, times[name], s.row.Min)
				}
			}
			b.ReportMetric(times["block ram"], "ram-ms")
			b.ReportMetric(times["block ram"]/times["prefix ram"], "ram/prefix")
			b.ReportMetric(times["block disk"]/times["block ram"], "disk/ram")
		})
	}
}
