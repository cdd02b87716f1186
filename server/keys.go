package server

import (
	"bufio"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
)

// Keys are who may use a server. They can be read again while it runs.
type Keys struct {
	path string
	env  string
	list atomic.Pointer[[]Key]
}

// A Key is one secret and whose it is. Blocks of one tenant are never found by another.
type Key struct {
	Tenant string
	Admin  bool // may see and drop what is stored, and read metrics
	sum    [sha256.Size]byte
}

var tenantName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`) // it names a folder

// ReadKeys reads keys from a file, a line each: TENANT SECRET, or TENANT SECRET admin; lines that are empty or begin with # do not count. env
// holds more of them, the same way with commas for line ends. Neither: nil, nobody needs a key.
func ReadKeys(path, env string) (*Keys, error) {
	if path == "" && env == "" {
		return nil, nil
	}
	k := &Keys{path: path, env: env}
	return k, k.Reload()
}

// Reload reads the file again. On an error the keys stay as they were.
func (k *Keys) Reload() error {
	var list []Key
	parse := func(line, where string) error {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
			return nil
		case len(fields) == 1 || len(fields) > 3 || len(fields) == 3 && fields[2] != "admin":
			return fmt.Errorf("%s: found %d fields; want TENANT SECRET, or TENANT SECRET admin", where, len(fields))
		case !tenantName.MatchString(fields[0]):
			return fmt.Errorf("%s: %q cannot be a tenant: letters, digits, dots, dashes and underscores can, up to 64", where, fields[0])
		case len(fields[1]) < 16:
			return fmt.Errorf("%s: the secret of %s has %d characters; want at least 16", where, fields[0], len(fields[1]))
		}
		list = append(list, Key{fields[0], len(fields) == 3, sha256.Sum256([]byte(fields[1]))})
		return nil
	}
	for i, line := range strings.Split(k.env, ",") {
		if err := parse(line, fmt.Sprintf("TESSERA_API_KEYS, key %d", i+1)); err != nil {
			return err
		}
	}
	if k.path != "" {
		f, err := os.Open(k.path)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for n := 1; lines.Scan(); n++ {
			if err := parse(lines.Text(), fmt.Sprintf("%s:%d", k.path, n)); err != nil {
				return err
			}
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("%s: %w", k.path, err)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("%s: no keys; want a line TENANT SECRET for each", k.path)
	}
	k.list.Store(&list)
	return nil
}

// of finds the key that a request carries; nil where nobody needs one. All keys are compared, in constant time.
func (k *Keys) of(r *http.Request) (*Key, error) {
	if k == nil {
		return nil, nil
	}
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(secret))
	var found *Key
	list := *k.list.Load()
	for i := range list {
		if subtle.ConstantTimeCompare(list[i].sum[:], sum[:]) == 1 {
			found = &list[i]
		}
	}
	if !ok || found == nil {
		return nil, &apiError{Status: http.StatusUnauthorized, Type: "invalid_request_error", Code: "invalid_api_key", Message: "a valid API key is needed: send it as Authorization: Bearer KEY"}
	}
	return found, nil
}

// admin refuses who may not see or change what all tenants share.
func (k *Key) admin() error {
	if k != nil && !k.Admin {
		return &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Message: "this needs an admin's key"}
	}
	return nil
}
