package corpus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// pdfOf makes a PDF file of objects, numbered from 1: the catalog first, the document's information as the fourth.
func pdfOf(objects ...string) string {
	var b, table strings.Builder
	b.WriteString("%PDF-1.4\n")
	for i, object := range objects {
		fmt.Fprintf(&table, "%010d 00000 n \n", b.Len())
		fmt.Fprintf(&b, "%d 0 obj\n%s\nendobj\n", i+1, object)
	}
	start := b.Len()
	fmt.Fprintf(&b, "xref\n0 %d\n0000000000 65535 f \n%strailer << /Size %d /Root 1 0 R /Info 4 0 R >>\nstartxref\n%d\n%%%%EOF\n",
		len(objects)+1, table.String(), len(objects)+1, start)
	return b.String()
}

func pdfStream(dictionary, content string) string {
	return fmt.Sprintf("<< %s /Length %d >>\nstream\n%s\nendstream", dictionary, len(content), content)
}

// pdf makes a PDF file with text: each page is a list of lines, set in Helvetica from the top down.
func pdf(title string, pages ...[]string) string {
	objects := []string{"<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
		fmt.Sprintf("<< /Title (%s) >>", title)}
	kids := ""
	for _, lines := range pages {
		content := "BT /F1 11 Tf 14 TL 72 720 Td\n"
		for _, line := range lines {
			content += fmt.Sprintf("(%s) Tj T*\n", strings.NewReplacer("(", "\\(", ")", "\\)").Replace(line))
		}
		n := len(objects) + 1
		kids += fmt.Sprintf("%d 0 R ", n)
		objects = append(objects,
			fmt.Sprintf("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>", n+1),
			pdfStream("", content+"ET"))
	}
	objects[1] = fmt.Sprintf("<< /Type /Pages /Kids [%s] /Count %d >>", kids, len(pages))
	return pdfOf(objects...)
}

// pdfBomb makes a PDF file whose page draws a form thirty times, which draws another thirty times, and so on: 30^depth lines of text.
func pdfBomb(depth int) string {
	objects := []string{"<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [5 0 R] /Count 1 >>",
		"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>", "<< >>",
		"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /XObject << /X 7 0 R >> >> /Contents 6 0 R >>",
		pdfStream("", strings.Repeat("/X Do ", 30))}
	for range depth {
		objects = append(objects, pdfStream(fmt.Sprintf("/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << /X %d 0 R >> >>",
			len(objects)+2), strings.Repeat("/X Do ", 30)))
	}
	objects = append(objects, pdfStream("/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >>", "BT /F1 9 Tf (boom) Tj ET"))
	return pdfOf(objects...)
}

// pdfCache is where these tests keep the compiled PDF reader, so that only the first run on a machine compiles it.
func pdfCache(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("compiling the PDF reader takes seconds")
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return t.TempDir()
	}
	return filepath.Join(dir, "tessera-test")
}

func TestPDF_GivesPagesAndParagraphs(t *testing.T) {
	cache := pdfCache(t)
	dir := write(t, map[string]string{
		"good.pdf": pdf("On foxes", []string{"Foxes live in many places of the northern", "half of the earth, and they eat", "voles.", "They hunt alone. In winter they listen for", "voles under the snow and"},
			nil, []string{"jump (high).", "A red fox weighs between three and nine kg."}),
		"untitled.pdf": pdf("", []string{"Plain."}),
		"empty.pdf":    pdf("x", nil),
		"cut.pdf":      pdf("x", []string{"hello"})[:60],
		"text.pdf":     "hello",
		"locked.pdf":   lockedPDF,
	})
	docs, skipped, err := Read(context.Background(), []string{dir}, cache)
	if err != nil {
		t.Fatal(err)
	}
	if len(docs) != 2 || docs[0].Title != "On foxes" || docs[1].Title != "untitled" {
		t.Fatalf("got %+v", docs)
	}
	want := "Foxes live in many places of the northern half of the earth, and they eat voles.\n\n" +
		"They hunt alone. In winter they listen for voles under the snow and jump (high).\n\nA red fox weighs between three and nine kg."
	if docs[0].Text != want {
		t.Errorf("got  %q\nwant %q", docs[0].Text, want)
	}
	checkDocuments(t, docs)
	var pages []int
	for _, p := range Split(docs[:1], 12, words9) {
		pages = append(pages, p.Page)
	}
	if want := []int{1, 1, 1, 3}; !reflect.DeepEqual(pages, want) {
		t.Errorf("pages of passages: got %v, want %v", pages, want)
	}
	var reasons []string
	for _, s := range skipped {
		reasons = append(reasons, filepath.Base(s.Path)+": "+s.Reason)
	}
	if want := []string{"cut.pdf: is not a PDF file, or is damaged", "empty.pdf: no text on its 1 pages", "locked.pdf: needs a password",
		"text.pdf: is not a PDF file, or is damaged"}; !reflect.DeepEqual(reasons, want) {
		t.Errorf("skipped: got %q, want %q", reasons, want)
	}
}

// A page that would be drawn for ages ends with the context, and leaves nothing running.
func TestPDF_Cancelled_Ends(t *testing.T) {
	cache := pdfCache(t)
	dir := write(t, map[string]string{"bomb.pdf": pdfBomb(12), "small.pdf": pdf("", []string{"x"})})
	if _, _, err := Read(context.Background(), []string{filepath.Join(dir, "small.pdf")}, cache); err != nil { // compiled from here on
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	began := time.Now()
	_, _, err := Read(ctx, []string{filepath.Join(dir, "bomb.pdf")}, cache)
	t.Log(time.Since(began), err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// lockedPDF declares an encryption for which the empty password is wrong.
var lockedPDF = strings.Replace(pdf("x", []string{"secret"}), "/Info 4 0 R", "/Info 4 0 R /ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 "+
	"/O <"+strings.Repeat("11", 32)+"> /U <"+strings.Repeat("22", 32)+"> >>", 1)
