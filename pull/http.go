package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// web is a source behind a URL, whoever serves it.
type web string

func (w web) String() string { return redact(string(w)) }

func (w web) fetch(ctx context.Context, p *puller, t *target, part *part) error {
	return p.download(ctx, request{url: string(w)}, t, part)
}

// hub is a file in a repository of the Hugging Face Hub. HF_ENDPOINT names another Hub, HF_TOKEN opens what is not public.
type hub struct{ repo, revision, file string }

func (h hub) String() string {
	if h.file == "" {
		return "hf:" + h.repo
	}
	return "hf:" + h.repo + ":" + h.file
}

func (h hub) fetch(ctx context.Context, p *puller, t *target, part *part) error {
	u := url.URL{Path: h.repo + "/resolve/" + h.revision + "/" + h.file}
	return p.download(ctx, h.request(u.EscapedPath()), t, part)
}

func (h hub) request(path string) request {
	endpoint := os.Getenv("HF_ENDPOINT")
	if endpoint == "" {
		endpoint = "https://huggingface.co"
	}
	return request{url: strings.TrimRight(endpoint, "/") + "/" + path, token: os.Getenv("HF_TOKEN"), hub: true}
}

// onlyFile asks the Hub which GGUF file the repository has. Where there are several the user must choose:
// they differ in size by ten times, and a guess would cost the download.
func (h hub) onlyFile(ctx context.Context, p *puller) (string, error) {
	ctx, dog := watch(ctx)
	defer dog.stop()
	dog.answerWithin(p.answer)
	resp, err := p.do(ctx, h.request("api/models/"+h.repo), nil, dog)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if err := refusal(resp, true); err != nil {
		return "", err
	}
	dog.bytesWithin(p.stall)
	var repo struct {
		Siblings []struct {
			Name string `json:"rfilename"`
		} `json:"siblings"`
	}
	// A repository with a hundred thousand files is a data set; its list is not read to the end.
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&repo); err != nil {
		return "", fmt.Errorf("the Hub's list of files cannot be read: %w", err)
	}
	var names []string
	for _, s := range repo.Siblings {
		if path.Ext(s.Name) == ".gguf" && plain(s.Name) {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	switch len(names) {
	case 0:
		return "", errors.New("the repository has no .gguf file")
	case 1:
		return names[0], nil
	}
	return "", advised{fmt.Errorf("the repository has %d .gguf files: %s", len(names), strings.Join(names, ", ")),
		fmt.Sprintf("name one: 'tessera pull hf:%s:%s'", h.repo, names[0])}
}

// request is what one GET asks for.
type request struct {
	url   string
	token string // for the host of url alone
	hub   bool   // the server is a Hub: its headers tell the file's hash, its refusals can be explained
}

// download brings the whole of r into part: it goes on from the bytes that are there if they are of the same file, and after
// a cut goes on from the cut, until an attempt after each of p.backoff brought nothing new.
func (p *puller) download(ctx context.Context, r request, t *target, part *part) error {
	most, vain := part.size, 0
	began := false // a server that never answered is given up at once: the next source may be better
	for {
		err := p.attempt(ctx, r, t, part, &began)
		var again broken
		if err == nil || !errors.As(err, &again) || ctx.Err() != nil {
			return err
		}
		if part.size > most {
			most, vain = part.size, 0
		}
		if !began {
			return again.error
		}
		if vain == len(p.backoff) {
			return fmt.Errorf("given up after %d attempts, with %d bytes: %w", vain+1, part.size, again.error)
		}
		select {
		case <-time.After(p.backoff[vain]):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		vain++
	}
}

// attempt is one GET and what comes of it. A broken error means that another may bring more.
func (p *puller) attempt(ctx context.Context, r request, t *target, part *part, began *bool) error {
	header := make(http.Header)
	if part.size > 0 {
		strong := part.meta.ETag != "" && !strings.HasPrefix(part.meta.ETag, "W/")
		switch {
		case t.sha256 != "" && part.meta.Size == part.size && part.meta.URL == r.url:
			return nil // all there, only the check was missing
		case part.meta.URL == r.url && (strong || t.sha256 != "") && (part.meta.Size < 0 || part.size < part.meta.Size):
			part.resumed = true
			header.Set("Range", fmt.Sprintf("bytes=%d-", part.size))
			if strong {
				header.Set("If-Range", part.meta.ETag)
			}
		default: // another file's, or nothing could tell whether both ends are of the same one
			if err := part.reset(); err != nil {
				return err
			}
		}
	}

	ctx, dog := watch(ctx)
	defer dog.stop()
	dog.answerWithin(p.answer)
	resp, err := p.do(ctx, r, header, dog)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	*began = true

	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return p.restart(part, "the server has no bytes after these")
	}
	if err := refusal(resp, r.hub); err != nil {
		return err
	}
	total := resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK: // the whole file: there was nothing yet, or it changed, or this server knows no ranges
		if err := part.reset(); err != nil {
			return err
		}
	case http.StatusPartialContent:
		var first int64
		first, total = contentRange(resp.Header.Get("Content-Range"))
		etag := resp.Header.Get("ETag")
		if first != part.size || part.meta.Size >= 0 && total != part.meta.Size || etag != "" && part.meta.ETag != "" && etag != part.meta.ETag {
			return p.restart(part, "the file changed on the server")
		}
	}
	if err := learn(resp, r, t); err != nil {
		return err
	}
	if t.bytes > 0 && total >= 0 && total != t.bytes {
		return fmt.Errorf("offers a file of %d bytes, expected %d", total, t.bytes)
	}
	if err := p.roomFor(part, total-part.size); err != nil {
		return err
	}
	if err := part.describe(partMeta{r.url, resp.Header.Get("ETag"), total}); err != nil {
		return err
	}

	dog.bytesWithin(p.stall)
	if err := p.copy(ctx, *t, part, watched{ctx, resp.Body}, total, func() { dog.bytesWithin(p.stall) }); err != nil {
		return err
	}
	if total >= 0 && part.size < total {
		return broken{fmt.Errorf("the connection ended, %d bytes were announced", total)}
	}
	return nil
}

// restart drops the bytes so far; the next attempt asks for the whole file.
func (p *puller) restart(part *part, why string) error {
	if err := part.reset(); err != nil {
		return err
	}
	return broken{errors.New(why)}
}

// do sends r and waits for the header of the answer; every redirect counts as an answer.
func (p *puller) do(ctx context.Context, r request, header http.Header, dog *watchdog) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "tessera")
	req.Header.Set("Accept-Encoding", "identity") // offsets count the file's own bytes
	if r.token != "" {
		req.Header.Set("Authorization", "Bearer "+r.token)
	}
	client := http.Client{Transport: p.transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if len(via) == 10 {
			return errors.New("more than 10 redirects")
		}
		dog.answerWithin(p.answer)
		// The client itself would keep the token for subdomains and other ports of the host, and for plain http.
		if next.URL.Host != req.URL.Host || next.URL.Scheme != req.URL.Scheme {
			next.Header.Del("Authorization")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which may hold a secret
		}
		return nil, broken{err}
	}
	return resp, nil
}

// refusal is what is wrong with an answer that is not a file.
func refusal(resp *http.Response, isHub bool) error {
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized && isHub:
		return advised{fmt.Errorf("%s: no such repository, or not public", resp.Status), "set HF_TOKEN to a token of an account that may read it"}
	case code == http.StatusForbidden && isHub:
		return advised{fmt.Errorf("%s: this account may not read it", resp.Status), "accept the model's terms on its page, or set HF_TOKEN to another account's token"}
	case code == http.StatusTooManyRequests || code >= 500:
		return broken{errors.New(resp.Status)}
	case code != http.StatusOK && code != http.StatusPartialContent:
		return errors.New(resp.Status)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); kind == "text/html" {
		return advised{errors.New("sends a web page, expected a file"), "copy the address of the file itself; a login or a proxy may be in the way too"}
	}
	return nil
}

var hexSum = regexp.MustCompile(`^[0-9a-f]{64}$`)

// learn takes the hash of the file from a Hub's answer, which is in the redirect to where the bytes are, if there was one.
func learn(resp *http.Response, r request, t *target) error {
	if !r.hub {
		return nil
	}
	for ; resp != nil; resp = resp.Request.Response {
		sum := strings.Trim(resp.Header.Get("X-Linked-Etag"), `"`)
		if !hexSum.MatchString(sum) {
			continue
		}
		if t.sha256 != "" && t.sha256 != sum {
			return fmt.Errorf("offers a file of SHA-256 %s, expected %s", sum, t.sha256)
		}
		t.sha256 = sum
	}
	return nil
}

// contentRange reads "bytes FIRST-LAST/TOTAL"; -1 stands for what is not there.
func contentRange(s string) (first, total int64) {
	var last int64
	if n, _ := fmt.Sscanf(s, "bytes %d-%d/%d", &first, &last, &total); n == 3 {
		return first, total
	}
	if n, _ := fmt.Sscanf(s, "bytes %d-%d/*", &first, &last); n == 2 {
		return first, -1
	}
	return -1, -1
}
