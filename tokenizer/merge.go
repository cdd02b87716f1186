package tokenizer

// maxWord bounds the bytes that are joined as one word, so that 32 bits count its units. A longer word is cut.
const maxWord = 1 << 30

// A merger joins neighbouring symbols, the best pair first and the leftmost of equals, until no pair is left: n symbols cost
// O(n log n). It is reused from word to word.
//
// Symbol i starts out as the i-th unit of the word; joined, it covers units i … next[i]-1. A symbol that was joined to its left
// neighbour is gone.
type merger struct {
	id   []int32 // of the symbol, or none
	prev []int32 // where the symbol before starts; -1 at the first
	next []int32 // where the symbol after starts; the number of units at the last, gone for a symbol that is gone
	heap []candidate

	// pair returns the token that the symbols left and right make together, and its rank: lower is joined earlier.
	pair func(left, right int32) (id int32, rank uint32, ok bool)
}

// A candidate is a pair that could be joined when it was found: units left … end-1. It is out of date if one of the two has changed since;
// as symbols only grow, that shows in where the pair ends.
type candidate struct {
	order uint64 // rank<<32 | left
	id    int32
	end   int32
}

const (
	none = -1 // no token
	gone = -1 // no symbol
)

func (m *merger) reset() {
	m.id, m.prev, m.next = m.id[:0], m.prev[:0], m.next[:0]
}

func (m *merger) add(id int32) {
	i := int32(len(m.id))
	m.id = append(m.id, id)
	m.prev = append(m.prev, i-1)
	m.next = append(m.next, i+1)
}

func (m *merger) run() {
	n := int32(len(m.id))
	m.heap = m.heap[:0]
	for right := int32(1); right < n; right++ {
		if c, ok := m.candidate(right-1, right); ok {
			m.heap = append(m.heap, c)
		}
	}
	for i := len(m.heap) / heapArity; i >= 0; i-- {
		m.down(i)
	}
	for len(m.heap) > 0 {
		c := m.pop()
		left := int32(uint32(c.order))
		if right := m.next[left]; right != gone && right < n && m.next[right] == c.end {
			m.join(left, right, c)
		}
	}
}

func (m *merger) join(left, right int32, c candidate) {
	m.id[left] = c.id
	m.next[left] = c.end
	m.next[right] = gone
	if int(c.end) < len(m.id) {
		m.prev[c.end] = left
		if c, ok := m.candidate(left, c.end); ok {
			m.push(c)
		}
	}
	if before := m.prev[left]; before >= 0 {
		if c, ok := m.candidate(before, left); ok {
			m.push(c)
		}
	}
}

func (m *merger) candidate(left, right int32) (candidate, bool) {
	id, rank, ok := m.pair(left, right)
	return candidate{order: uint64(rank)<<32 | uint64(left), id: id, end: m.next[right]}, ok
}

// The heap is written out: container/heap would allocate each candidate. The four children of an element are 64 bytes in a row, and a
// word of a megabyte has half the levels it would have with two.
const heapArity = 4

func (m *merger) push(c candidate) {
	m.heap = append(m.heap, c)
	i := len(m.heap) - 1
	for i > 0 {
		parent := (i - 1) / heapArity
		if m.heap[parent].order <= c.order {
			break
		}
		m.heap[i] = m.heap[parent]
		i = parent
	}
	m.heap[i] = c
}

func (m *merger) pop() candidate {
	top := m.heap[0]
	last := len(m.heap) - 1
	m.heap[0] = m.heap[last]
	m.heap = m.heap[:last]
	m.down(0)
	return top
}

// down moves element i, if there is one, below those that come before it.
func (m *merger) down(i int) {
	h := m.heap
	if i >= len(h) {
		return
	}
	c := h[i]
	for {
		best, order := i, c.order
		for child := heapArity*i + 1; child < min(heapArity*i+1+heapArity, len(h)); child++ {
			if h[child].order < order {
				best, order = child, h[child].order
			}
		}
		if best == i {
			break
		}
		h[i] = h[best]
		i = best
	}
	h[i] = c
}
