// Package grammar holds text to a form while it is generated: a JSON schema (or none) → a Grammar, which says of each state what bytes may
// come next.
//
// A Grammar is a program for a small machine, as regular expressions have one (Thompson's, of many threads in step), with calls and a
// stack, since JSON nests. It reads bytes, not characters: tokens may end in the middle of one.
package grammar

import "slices"

// A Grammar is what text may be. It is immutable, and safe for concurrent use.
type Grammar struct {
	code []instruction
}

// An instruction of the machine.
type instruction struct {
	op   op
	set  set // of opByte: the bytes that go on at the next instruction
	x, y int // where it goes on: opSplit both; opJump x; opCall x, and with what follows it on return
}

type op uint8

const (
	opByte op = iota
	opSplit
	opJump
	opCall
	opReturn
	opEnd // the text is complete
)

// A set of bytes.
type set [4]uint64

func (s *set) add(from, to byte) {
	for b := int(from); b <= int(to); b++ {
		s[b>>6] |= 1 << (b & 63)
	}
}

func (s *set) has(b byte) bool { return s[b>>6]>>(b&63)&1 != 0 }

// A Matcher is where in a Grammar a text has come to. It belongs to one text.
type Matcher struct {
	grammar *Grammar
	threads []thread
	next    []thread            // scratch
	trial   []thread            // scratch of Allows
	frames  map[frame]*frame    // those in use, each once, so that equal threads are found to be equal
	seen    map[thread]struct{} // scratch: threads added for this byte
}

// A thread is at an instruction, with the calls that it has to return from.
type thread struct {
	at    int
	stack *frame
}

type frame struct {
	to int
	up *frame
}

// deepest is how many calls a thread may be in: arrays in arrays, and the like.
const deepest = 256

// Matcher starts a text.
func (g *Grammar) Matcher() *Matcher {
	m := &Matcher{grammar: g, frames: map[frame]*frame{}, seen: map[thread]struct{}{}}
	m.threads = m.follow(nil, thread{})
	return m
}

// Allows tells whether the text may go on with these bytes, at least one.
func (m *Matcher) Allows(bytes []byte) bool {
	m.trial = append(m.trial[:0], m.threads...)
	at := m.trial
	for _, b := range bytes {
		m.next = m.step(m.next[:0], at, b)
		if len(m.next) == 0 {
			return false
		}
		at, m.next, m.trial = m.next, at, m.next
	}
	return len(bytes) > 0
}

// Push goes on with bytes that Allows has allowed.
func (m *Matcher) Push(bytes []byte) {
	for _, b := range bytes {
		m.next = m.step(m.next[:0], m.threads, b)
		m.threads, m.next = m.next, m.threads
	}
}

// Complete tells whether the text may end here.
func (m *Matcher) Complete() bool {
	return slices.ContainsFunc(m.threads, func(t thread) bool { return m.grammar.code[t.at].op == opEnd })
}

// Over tells that the text must end here: nothing may follow.
func (m *Matcher) Over() bool {
	return !slices.ContainsFunc(m.threads, func(t thread) bool { return m.grammar.code[t.at].op == opByte })
}

// step appends to dst where the threads go with a byte.
func (m *Matcher) step(dst, threads []thread, b byte) []thread {
	clear(m.seen)
	for _, t := range threads {
		if i := &m.grammar.code[t.at]; i.op == opByte && i.set.has(b) {
			dst = m.follow(dst, thread{t.at + 1, t.stack})
		}
	}
	return dst
}

// follow appends the instructions that wait for a byte, or end the text, which a thread comes to without one.
func (m *Matcher) follow(dst []thread, t thread) []thread {
	for {
		if _, known := m.seen[t]; known {
			return dst
		}
		m.seen[t] = struct{}{}
		switch i := &m.grammar.code[t.at]; i.op {
		case opByte, opEnd:
			return append(dst, t)
		case opJump:
			t.at = i.x
		case opSplit:
			dst = m.follow(dst, thread{i.x, t.stack})
			t.at = i.y
		case opCall:
			if t.depth() >= deepest {
				return dst
			}
			t = thread{i.x, m.frame(frame{t.at + 1, t.stack})}
		case opReturn:
			t = thread{t.stack.to, t.stack.up}
		}
	}
}

func (t thread) depth() (n int) {
	for f := t.stack; f != nil; f = f.up {
		n++
	}
	return n
}

func (m *Matcher) frame(f frame) *frame {
	if known := m.frames[f]; known != nil {
		return known
	}
	m.frames[f] = &f
	return &f
}
