package corpus

import (
	"context"
	"fmt"
	"strconv"

	"github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis/lang/en"
	"github.com/blevesearch/bleve/v2/index/scorch"
	"github.com/blevesearch/bleve/v2/mapping"
	bleveindex "github.com/blevesearch/bleve_index_api"
)

// Rank returns the k passages that best match the question, best first, by BM25 over titles and texts; equal ones in the order given.
// Where fewer than k share a word with the question, only those are returned, and where none does, the first k. With k passages or
// fewer there is nothing to choose: all come back, those that share no word last.
//
// The question is words, never a query language: operators and punctuation in it mean nothing.
func Rank(ctx context.Context, passages []Passage, question string, k int) ([]Passage, error) {
	if k < 1 {
		return nil, fmt.Errorf("rank: k is %d, expected at least 1", k)
	}
	ix, err := newIndex(ctx, passages)
	if err != nil {
		return nil, err
	}
	defer ix.close()
	found, err := ix.find(ctx, question, k)
	if err != nil {
		return nil, err
	}
	var best []Passage
	taken := make([]bool, len(passages))
	for _, i := range found {
		best, taken[i] = append(best, passages[i]), true
	}
	if len(found) == 0 || len(passages) <= k {
		for i, p := range passages {
			if !taken[i] && len(best) < k {
				best = append(best, p)
			}
		}
	}
	return best, nil
}

// An index finds passages by words. It lives in memory only.
type index struct {
	passages []Passage
	words    bleve.Index
}

const (
	field     = "passage" // title and text together: a word of the title counts like one of the text
	batchSize = 4000      // bounds the memory of analysis; larger is no faster
)

func newIndex(ctx context.Context, passages []Passage) (*index, error) {
	words, err := bleve.NewUsing("", indexMapping(), scorch.Name, scorch.Name, nil) // without a path: in memory
	if err != nil {
		return nil, fmt.Errorf("keyword index: %w", err)
	}
	ix := &index{passages: passages, words: words}
	for start := 0; start < len(passages); start += batchSize {
		if err := ix.add(ctx, start, min(start+batchSize, len(passages))); err != nil {
			ix.close()
			return nil, err
		}
	}
	return ix, nil
}

// indexMapping asks for BM25. Only the index type scorch has the lengths that BM25 needs: with bleve's default in memory the same
// setting silently scores by TF-IDF.
func indexMapping() mapping.IndexMapping {
	text := bleve.NewTextFieldMapping()
	text.Analyzer = en.AnalyzerName // stems English, which other languages mostly survive; splits words by Unicode's rules
	text.Store, text.DocValues, text.IncludeTermVectors, text.IncludeInAll = false, false, false, false
	passage := bleve.NewDocumentStaticMapping()
	passage.AddFieldMappingsAt(field, text)
	passage.AddSubDocumentMapping("_all", bleve.NewDocumentDisabledMapping()) // a second index of the same words
	m := bleve.NewIndexMapping()
	m.DefaultMapping = passage
	m.ScoringModel = bleveindex.BM25Scoring
	return m
}

func (ix *index) add(ctx context.Context, start, end int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	batch := ix.words.NewBatch()
	for i, p := range ix.passages[start:end] {
		id := fmt.Sprintf("%012d", start+i) // padded, so that ids sort as numbers do: they break ties
		if err := batch.Index(id, map[string]any{field: p.Title + "\n" + p.Text}); err != nil {
			return fmt.Errorf("keyword index: %w", err)
		}
	}
	if err := ix.words.Batch(batch); err != nil {
		return fmt.Errorf("keyword index: %w", err)
	}
	return nil
}

// find is which passages match best, at most k.
func (ix *index) find(ctx context.Context, question string, k int) (found []int, err error) {
	result, err := ix.words.SearchInContext(ctx, request(question, k))
	if err != nil {
		return nil, fmt.Errorf("keyword index: %w", err)
	}
	for _, hit := range result.Hits {
		i, err := strconv.Atoi(hit.ID)
		if err != nil || i >= len(ix.passages) {
			return nil, fmt.Errorf("keyword index: unknown passage %q", hit.ID)
		}
		found = append(found, i)
	}
	return found, nil
}

func request(question string, k int) *bleve.SearchRequest {
	query := bleve.NewMatchQuery(question) // any of its words
	query.SetField(field)
	request := bleve.NewSearchRequestOptions(query, k, 0, false)
	request.SortBy([]string{"-_score", "_id"})
	return request
}

func (ix *index) close() { ix.words.Close() }
