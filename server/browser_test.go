package server

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/tessera-llm/tessera/internal/testenv"

	tessera "github.com/tessera-llm/tessera"
)

// A person's way through the page in a real browser, the one that TESSERA_BROWSER names: files in, a question, the answer as it streams, a source
// opened, the store. SCREENSHOTS names a folder for pictures of it.
func TestPage_InABrowser(t *testing.T) {
	browser := os.Getenv("TESSERA_BROWSER")
	if browser == "" {
		t.Skip("TESSERA_BROWSER names no browser; scripts/browser-test installs one")
	}
	x, err := tessera.Open(tessera.Options{Model: testenv.Model(t), Store: filepath.Join(t.TempDir(), "kv")})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	server := New(x, Options{Library: t.TempDir(), Loopback: true})
	s := httptest.NewServer(server)
	defer server.Close()
	defer s.Close()

	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(browser), chromedp.NoSandbox, chromedp.WSURLReadTimeout(2*time.Minute))
	allocated, free := chromedp.NewExecAllocator(t.Context(), options...)
	defer free()
	ctx, end := chromedp.NewContext(allocated)
	defer end()
	ctx, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	type step = chromedp.Action[chromedp.Void]
	run := func(what string, steps ...step) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	script := func(text string) step { return chromedp.Evaluate[chromedp.Void](text + "; undefined") }
	until := func(condition string) step {
		return chromedp.Poll[chromedp.Void](condition, chromedp.WithPollingTimeout(time.Minute))
	}
	read := func(expression string) (text string) {
		t.Helper()
		text, err := chromedp.Run(ctx, chromedp.Evaluate[string](expression))
		if err != nil {
			t.Fatalf("%s: %v", expression, err)
		}
		return text
	}
	const drawn = `[...document.querySelectorAll('.strip button')].map(b => b.className).join(' ')`
	css := func(selector string) chromedp.CSS { return chromedp.CSS(selector) }

	file := filepath.Join(t.TempDir(), "coast.md")
	text := "# Lighthouses\n\nThe lighthouse at Norre was built in 1871 of red granite. It burned gas.\n\n# Ferries\n\nFerries to the islands leave at noon from the old harbour, in summer also at six.\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run("ingest", chromedp.EmulateViewport(1200, 760), chromedp.Navigate(s.URL+"/#collections"), chromedp.WaitVisible(css("#drop")),
		chromedp.SetValue(css("#into"), "coast"), chromedp.SetUploadFiles(css("#files"), []string{file}),
		until(`document.getElementById('step').textContent.includes('added')`), chromedp.WaitVisible(css("#list tbody tr")))
	if report := read(`document.getElementById('step').textContent`); !strings.HasPrefix(report, "1 added") {
		t.Errorf("the report says %q", report)
	}
	run("ask", chromedp.Navigate(s.URL+"/#ask"), chromedp.WaitVisible(css("#text")), until(`document.getElementById('collection').value === 'coast'`),
		script(`window.pieces = 0; new MutationObserver(() => { window.pieces++ }).observe(document.getElementById('turns'), {childList: true, subtree: true, characterData: true})`),
		chromedp.SetValue(css("#attention"), "block"), chromedp.SendKeys(css("#text"), "When was the lighthouse at Norre built?\r"), until(`document.querySelector('.strip') !== null`))
	if answer, pieces := read(`document.querySelector('.answer').textContent`), read(`String(window.pieces >= 4)`); !strings.Contains(answer, "1871") || pieces != "true" {
		t.Errorf("the answer is %q, in four changes of the page or more: %s", answer, pieces)
	}
	if blocks := read(drawn); !strings.Contains(blocks, "computed") || !strings.HasSuffix(blocks, "query") {
		t.Errorf("the prompt is drawn as %q", blocks)
	}
	run("open a source", chromedp.Click(css(".cited button")), chromedp.WaitVisible(css("#passage[open] mark")))
	if mark := read(`document.querySelector('#content mark').textContent`); !strings.Contains(mark, "1871") {
		t.Errorf("the passage opens with %q marked", mark)
	}
	run("open a citation", script(`document.getElementById('passage').close()`), chromedp.Click(css(".answer sup button")), chromedp.WaitVisible(css("#passage[open] mark")))
	run("ask again", script(`document.getElementById('passage').close(); document.getElementById('clear').click()`),
		chromedp.SendKeys(css("#text"), "Of what was the lighthouse at Norre built?\r"), until(`document.querySelector('.strip') !== null`))
	if blocks := read(drawn); strings.Contains(blocks, "computed") {
		t.Errorf("the second question computes more than itself: %q", blocks)
	}
	run("the store", chromedp.Navigate(s.URL+"/#store"), chromedp.WaitVisible(css("#blocks tbody tr")))

	if folder := os.Getenv("SCREENSHOTS"); folder != "" {
		for _, look := range []struct {
			name, scheme  string
			width, height int64
		}{{"light", "light", 1200, 760}, {"dark", "dark", 1200, 760}, {"phone", "light", 390, 800}} {
			for _, page := range []string{"ask", "collections", "store"} {
				run("a picture", chromedp.EmulateViewport(look.width, look.height), chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
					_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}}})
					return err
				}), chromedp.Navigate(s.URL+"/#"+page), chromedp.WaitVisible(css("#"+page)), chromedp.Sleep(300*time.Millisecond))
				picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(folder, page+"-"+look.name+".png"), picture, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
