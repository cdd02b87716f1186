package server

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limits are how many requests each tenant may still make.
type limits struct {
	perMinute int // 0: any number
	mu        sync.Mutex
	tenants   map[string]*rate.Limiter
}

// admit refuses a request that comes too soon after those before it: a tenant may make a minute's at once, and then they come back evenly.
func (l *limits) admit(w http.ResponseWriter, k *Key) error {
	if l.perMinute == 0 {
		return nil
	}
	tenant := ""
	if k != nil {
		tenant = k.Tenant
	}
	l.mu.Lock()
	if l.tenants[tenant] == nil {
		l.tenants[tenant] = rate.NewLimiter(rate.Limit(float64(l.perMinute)/60), l.perMinute)
	}
	turn := l.tenants[tenant].Reserve()
	l.mu.Unlock()
	wait := turn.Delay()
	if wait == 0 {
		return nil
	}
	turn.Cancel()
	return comeBack(w, wait, &apiError{Status: http.StatusTooManyRequests, Type: "rate_limit_error", Code: "rate_limit_exceeded",
		Message: fmt.Sprintf("more than %d requests a minute; try again in %v", l.perMinute, wait.Round(time.Second/10))})
}

// comeBack is an error with the time after which another attempt makes sense.
func comeBack(w http.ResponseWriter, wait time.Duration, e *apiError) error {
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	return e
}
