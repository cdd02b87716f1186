package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/tessera-llm/tessera"
	"github.com/tessera-llm/tessera/corpus"
	"github.com/tessera-llm/tessera/engine"
	"github.com/tessera-llm/tessera/grammar"
)

// An apiError is an error in the shape of OpenAI's.
type apiError struct {
	Status  int    `json:"-"`
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   string `json:"param,omitempty"`
	Code    string `json:"code,omitempty"`
}

func (e *apiError) Error() string { return e.Message }

// MarshalJSON writes null where there is no param or code, as clients expect.
func (e *apiError) MarshalJSON() ([]byte, error) {
	null := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	return json.Marshal(map[string]any{"message": e.Message, "type": e.Type, "param": null(e.Param), "code": null(e.Code)})
}

// invalid is a 400 that names the field.
func invalid(param, format string, args ...any) error {
	message := fmt.Sprintf(format, args...)
	if param != "" {
		message = param + ": " + message
	}
	return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Param: param, Message: message}
}

// asAPIError finds the shape for an error of any kind.
func asAPIError(err error) *apiError {
	var (
		api      *apiError
		tooLarge *http.MaxBytesError
		tooLong  *engine.ContextError
		sampling *engine.SamplingError
		message  *tessera.MessageError
		schema   *grammar.SchemaError
		name     *corpus.NameError
		memory   *tessera.MemoryError
	)
	bad := func(param, code string) *apiError {
		return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Param: param, Code: code, Message: err.Error()}
	}
	switch {
	case errors.As(err, &api):
		return api
	case errors.As(err, &tooLarge):
		return &apiError{Status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	case errors.As(err, &tooLong):
		return bad("messages", "context_length_exceeded")
	case errors.As(err, &memory):
		return bad("messages", "too_large")
	case errors.As(err, &sampling):
		return bad("", "")
	case errors.As(err, &message):
		return bad("messages", "")
	case errors.As(err, &schema):
		return bad("response_format", "")
	case errors.As(err, &name) && name.Known == nil:
		return bad("collection", "")
	case errors.As(err, &name):
		return &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Param: "collection", Code: "collection_not_found", Message: err.Error()}
	case errors.Is(err, tessera.ErrNoQuestion):
		return bad("messages", "")
	case errors.Is(err, context.Canceled):
		return &apiError{Status: 499, Type: "invalid_request_error", Message: "the client went away"}
	}
	return &apiError{Status: http.StatusInternalServerError, Type: "server_error", Message: err.Error()}
}

// writeError answers with an error, or ends a stream with it.
func writeError(w http.ResponseWriter, err error) {
	e := asAPIError(err)
	body := map[string]any{"error": e}
	if w.Header().Get("Content-Type") == eventStream {
		_ = writeEvent(w, body)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_ = json.NewEncoder(w).Encode(body)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only where nobody listens any more
}

// readJSON reads the body into v. Fields that v does not have are ignored.
func readJSON(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	if err := d.Decode(v); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return err
		}
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return invalid(wrong.Field, "found a %s, expected %v", wrong.Value, wrong.Type)
		}
		return invalid("", "the body is no JSON object of this endpoint: %v", err)
	}
	if d.More() {
		return invalid("", "something follows the JSON object in the body")
	}
	return nil
}

const eventStream = "text/event-stream"

// beginStream answers with a stream of events.
func beginStream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", eventStream)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
}

// writeEvent sends one event of a stream at once.
func writeEvent(w http.ResponseWriter, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

func endStream(w http.ResponseWriter) error {
	if _, err := fmt.Fprint(w, "data: [DONE]\n\n"); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}
