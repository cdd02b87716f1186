package server

import (
	"net/http"
	"time"

	"github.com/tessera-llm/tessera/kv"
)

// shownBlocks is how many blocks the store's page lists.
const shownBlocks = 50

// store is GET /api/store: how full the store is, and the blocks used last.
func (s *Server) store(w http.ResponseWriter, r *http.Request, k *Key) error {
	if err := k.admin(); err != nil {
		return err
	}
	stat, infos, err := s.tessera.Stored()
	if err != nil {
		return err
	}
	type tier struct {
		Name   string `json:"name"`
		Blocks int    `json:"blocks"`
		Bytes  int64  `json:"bytes"`
		Limit  int64  `json:"limit"`
	}
	type block struct {
		ID     string    `json:"id"`
		Tokens int       `json:"tokens"`
		Bytes  int64     `json:"bytes"`
		Used   time.Time `json:"used"`
	}
	tiers := []tier{{"memory", stat.RAMBlocks, stat.RAMBytes, stat.RAMLimit}}
	if stat.Dir != "" {
		tiers = append(tiers, tier{"disk", stat.Blocks, stat.DiskBytes, stat.DiskLimit})
	}
	blocks := []block{}
	for _, i := range infos[:min(len(infos), shownBlocks)] {
		blocks = append(blocks, block{i.ID.String(), i.Shape.Tokens, i.Bytes, i.LastUsed})
	}
	writeJSON(w, map[string]any{"tiers": tiers, "blocks": blocks})
	return nil
}

// drop is POST /api/store/drop: of blocks by id, or of all.
func (s *Server) drop(w http.ResponseWriter, r *http.Request, k *Key) error {
	if err := k.admin(); err != nil {
		return err
	}
	var q struct {
		IDs []string `json:"ids"`
	}
	if err := readJSON(r, &q); err != nil {
		return err
	}
	var ids []kv.ID
	for _, text := range q.IDs {
		id, ok := kv.ParseID(text)
		if !ok {
			return invalid("ids", "%q is no id of a block", text)
		}
		ids = append(ids, id)
	}
	blocks, bytes, err := s.tessera.Drop(ids...)
	if err != nil {
		return err
	}
	writeJSON(w, map[string]any{"blocks": blocks, "bytes": bytes})
	return nil
}
