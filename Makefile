# `make test` is the gate (.ci/run calls it): everything below, at most ten minutes on two cores, a fresh machine's compiling included.
# `make nightly` takes hours. Each stage can be run alone and says how long it took.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME ?= 1s
STAGE = @scripts/stage

.PHONY: test nightly model fmt vet staticcheck build paths unit purego race race-all load load-long large portable deploy recipe clients browser hostile fuzz
.NOTPARALLEL:

test: model fmt vet staticcheck build paths unit purego race load fuzz

nightly: model race-all recipe clients browser hostile load-long large portable deploy
	FUZZTIME=10m scripts/stage fuzz scripts/fuzz

model: # tests with the default model skip where it cannot be had; with CI=true that is a failure
	$(STAGE) model scripts/model

fmt:
	$(STAGE) gofmt scripts/gofmt

vet:
	$(STAGE) vet go vet ./...

staticcheck:
	$(STAGE) staticcheck go run $(STATICCHECK) ./...

build: # without cgo, for every platform that is promised
	$(STAGE) "build linux/amd64" env CGO_ENABLED=0 GOOS=linux GOARCH=amd64 go build ./...
	$(STAGE) "build linux/arm64" env CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build ./...
	$(STAGE) "build darwin/arm64" env CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build ./...

paths: # which kernels this CPU can run: those are tested, the others are skipped
	$(STAGE) "kernel paths" scripts/paths

unit:
	$(STAGE) test go test ./...

purego: # the portable twins of what is assembly otherwise, in the packages that compute with them
	$(STAGE) "test purego" go test -tags purego ./internal/... ./attention ./kv ./weights ./model ./engine ./train ./eval ./bench

race: # the packages with concurrency of their own, without the tests that run the real model; not those above the search index and the
	# PDF reader, which alone take minutes to compile for it
	$(STAGE) race scripts/race -short concurrent

race-all:
	$(STAGE) "race, everything" scripts/race -timeout=4h all

load: # a server under 200 clients for a minute
	$(STAGE) load env TESSERA_LOAD=60s go test -count=1 -run TestLoad -v ./server

load-long: # and for ten, with the default model
	$(STAGE) "load, the default model" env TESSERA_LOAD=10m TESSERA_LOAD_MODEL=default go test -count=1 -timeout 30m -run TestLoad -v ./server

large: # a collection of 100,000 passages
	$(STAGE) large env TESSERA_LARGE=1 go test -count=1 -run HundredThousand -v ./corpus

portable: # the shared vectors' long cases, which the quick paths pass in `test`
	$(STAGE) "the default model, portable" env TESSERA_LARGE=1 go test -tags purego -count=1 -timeout 1h -run "SharedVectors|SharedText" -v ./eval

deploy: # what is in deploy/, by checkers that are fetched
	$(STAGE) deploy scripts/check-deploy

recipe: # the PyTorch one, in a Python environment that takes several GB
	$(STAGE) recipe scripts/recipe-test

clients: # OpenAI's Python and JavaScript clients, which are fetched
	$(STAGE) "OpenAI's clients" scripts/client-tests

browser: # the page in Chromium, which is installed where it is missing
	$(STAGE) browser scripts/browser-test

hostile: # what the server's document allows and does not, by a fuzzer that is fetched
	$(STAGE) "hostile requests" scripts/hostile-test

fuzz: # each target for FUZZTIME; the readers of corpus, long to compile for it, are left to nightly
	$(STAGE) "fuzz, $(FUZZTIME) a target" env FUZZTIME=$(FUZZTIME) scripts/fuzz ./tokenizer ./weights ./kv ./prompt ./engine ./grammar
