package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/cpu"

	"github.com/tessera-llm/tessera/internal/kernel"
)

// A Machine is where a report comes from.
type Machine struct {
	CPU      string   `json:"cpu"`
	Cores    int      `json:"cores"`   // logical CPUs this process may use
	Threads  int      `json:"threads"` // that compute
	Features []string `json:"features"`
	Path     string   `json:"path"`         // the kernels in use
	Memory   int64    `json:"memory_bytes"` // 0: unknown
	Platform string   `json:"platform"`
	Go       string   `json:"go"`
}

// ThisMachine describes the machine.
func ThisMachine() Machine {
	name, memory := hardware()
	return Machine{
		CPU: name, Cores: runtime.NumCPU(), Threads: runtime.GOMAXPROCS(0), Features: features(), Path: kernel.Path(),
		Memory: memory, Platform: runtime.GOOS + "/" + runtime.GOARCH, Go: runtime.Version(),
	}
}

// features are the instructions that matter here.
func features() []string {
	x, a := &cpu.X86, &cpu.ARM64
	has := []string{}
	for _, f := range []struct {
		name string
		ok   bool
	}{
		{"avx2", x.HasAVX2}, {"fma", x.HasFMA}, {"avx-vnni", x.HasAVXVNNI}, {"avx512f", x.HasAVX512F}, {"avx512-vnni", x.HasAVX512VNNI},
		{"avx512-bf16", x.HasAVX512BF16}, {"amx-int8", x.HasAMXInt8}, {"amx-bf16", x.HasAMXBF16}, {"asimd", a.HasASIMD}, {"asimd-dp", a.HasASIMDDP},
	} {
		if f.ok {
			has = append(has, f.name)
		}
	}
	return has
}

// Limits is a report about the machine alone.
type Limits struct {
	Head
	Rows []Rate `json:"rows"`
}

// A Rate is how fast the machine can do one thing, with all threads.
type Rate struct {
	Test  string   `json:"test"` // machine
	Name  string   `json:"name"`
	Value *float64 `json:"value"` // the median of the runs; null: see Note
	Unit  string   `json:"unit"`
	Min   float64  `json:"min"`
	Max   float64  `json:"max"`
	Runs  int      `json:"runs"`
	Note  string   `json:"note,omitempty"`
}

// Sizes and times of Measure's parts. The buffer is far larger than any last-level cache a few cores have.
const (
	peakTime    = 200 * time.Millisecond
	memoryBytes = 1 << 30
	diskBytes   = 256 << 20
)

// MeasureMachine measures what the hardware can do: arithmetic, reading memory, and reading a file in folder that the page cache
// does not hold.
func MeasureMachine(ctx context.Context, folder string, runs int, progress func(share float64)) ([]Rate, error) {
	peaks := kernel.Peaks()
	done := 0
	rate := func(name, unit string, once func() (float64, error)) (Rate, error) {
		r := Rate{Test: TestMachine, Name: name, Unit: unit}
		var all []float64
		for range runs {
			if err := ctx.Err(); err != nil {
				return r, err
			}
			x, err := once()
			if err != nil {
				return r, err
			}
			all = append(all, x)
		}
		var row Row
		r.Value = row.summarize(all)
		r.Min, r.Max, r.Runs = row.Min, row.Max, row.Runs
		if done++; progress != nil {
			progress(float64(done) / float64(len(peaks)+2))
		}
		return r, nil
	}
	var rates []Rate
	for _, p := range peaks {
		if p.Without != "" {
			done++
			rates = append(rates, Rate{Test: TestMachine, Name: p.Name, Unit: p.Unit, Note: p.Without})
			continue
		}
		r, err := rate(p.Name, p.Unit, func() (float64, error) { return peak(&p), nil })
		if err != nil {
			return nil, err
		}
		rates = append(rates, r)
	}
	memory := make([]uint64, memoryBytes/8)
	for i := range memory {
		memory[i] = uint64(i) // pages that were never written to are all the same one
	}
	r, err := rate("memory, read", "GB/s", func() (float64, error) { return readMemory(memory), nil })
	if err != nil {
		return nil, err
	}
	rates = append(rates, r)
	r, err = diskRate(folder, rate)
	return append(rates, r), err
}

// peak is how many operations a nanosecond all threads do together.
func peak(p *kernel.Peak) float64 {
	var ops atomic.Int64
	begin := time.Now()
	onAllThreads(func(int, int) {
		var mine float64
		for time.Since(begin) < peakTime {
			mine += p.Run()
		}
		ops.Add(int64(mine))
	})
	return float64(ops.Load()) / float64(time.Since(begin).Nanoseconds())
}

// readMemory is how many bytes a nanosecond all threads read together, each its part of the memory.
func readMemory(memory []uint64) float64 {
	var sums atomic.Uint64 // so that the reading is for something
	begin := time.Now()
	onAllThreads(func(i, n int) {
		part := memory[len(memory)*i/n : len(memory)*(i+1)/n]
		for len(part) > 0 { // a call of assembly cannot be preempted: keep it short
			m := min(len(part), 1<<16)
			sums.Add(kernel.ReadSum(part[:m]))
			part = part[m:]
		}
	})
	d := time.Since(begin)
	runtime.KeepAlive(memory)
	return float64(8*len(memory)) / float64(d.Nanoseconds())
}

func onAllThreads(do func(i, n int)) {
	var all sync.WaitGroup
	n := runtime.GOMAXPROCS(0)
	for i := range n {
		all.Go(func() { do(i, n) })
	}
	all.Wait()
}

// diskRate reads a file from one end to the other.
func diskRate(folder string, rate func(string, string, func() (float64, error)) (Rate, error)) (Rate, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return Rate{}, err
	}
	f, err := os.CreateTemp(folder, "bench-")
	if err != nil {
		return Rate{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	chunk := make([]byte, 4<<20)
	for i := range diskBytes / len(chunk) {
		for j := 0; j < len(chunk); j += 8 { // a disk may pack what repeats
			x := uint64(i*len(chunk)+j+1) * 0x9E3779B97F4A7C15
			for k := range 8 {
				chunk[j+k] = byte(x >> (8 * k))
			}
		}
		if _, err := f.Write(chunk); err != nil {
			return Rate{}, err
		}
	}
	if err := f.Sync(); err != nil {
		return Rate{}, err
	}
	note := ""
	r, err := rate("disk, read from end to end", "GB/s", func() (float64, error) {
		if err := dropPageCache([]string{f.Name()}); err != nil {
			note = fmt.Sprintf("the page cache was not dropped: %v", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		begin := time.Now()
		for {
			_, err := io.ReadFull(f, chunk)
			if err == io.EOF {
				return diskBytes / float64(time.Since(begin).Nanoseconds()), nil
			}
			if err != nil {
				return 0, err
			}
		}
	})
	r.Note = note
	return r, err
}
