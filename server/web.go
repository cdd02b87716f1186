package server

import (
	"embed"
	"io/fs"
	"net/http"
)

//go:embed web
var web embed.FS

//go:embed openapi.json
var openAPI []byte

// page serves the web page. Nothing of it comes from elsewhere, and nothing else may be loaded into it.
func page() http.Handler {
	files, err := fs.Sub(web, "web")
	if err != nil {
		panic(err) // the folder is in the binary
	}
	serve := http.FileServerFS(files)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := fs.Stat(files, r.URL.Path[1:]); err != nil && r.URL.Path != "/" {
			writeError(w, &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Message: "nothing is at " + r.Method + " " + r.URL.Path})
			return
		}
		w.Header().Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-cache")
		serve.ServeHTTP(w, r)
	})
}
