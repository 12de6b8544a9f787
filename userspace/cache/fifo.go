package cache

// The queues of S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): new objects enter
// a small queue that gets a tenth of the bytes; those asked for again there move to the main one; those that are not
// leave, and only their hash stays as a ghost, by which a quick return goes straight to main. Main gives an object one
// more round for each of up to three hits.

const (
	queueNone uint8 = iota
	queueSmall
	queueMain
)

const maxFreq = 3

// queue is a doubly linked list of objects; front is the newest.
type queue struct {
	front, back *object
	weight      int64
	n           int
}

func (q *queue) push(o *object) {
	o.prev, o.next = nil, q.front
	if q.front != nil {
		q.front.prev = o
	} else {
		q.back = o
	}
	q.front = o
	q.weight += o.weight
	q.n++
}

func (q *queue) remove(o *object) {
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		q.front = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		q.back = o.prev
	}
	o.prev, o.next = nil, nil
	q.weight -= o.weight
	q.n--
}

// replace puts o in the place of old, which leaves.
func (q *queue) replace(old, o *object) {
	o.prev, o.next = old.prev, old.next
	if o.prev != nil {
		o.prev.next = o
	} else {
		q.front = o
	}
	if o.next != nil {
		o.next.prev = o
	} else {
		q.back = o
	}
	old.prev, old.next = nil, nil
	q.weight += o.weight - old.weight
}

// fifo is one shard's queues.
type fifo struct {
	small, main queue
	ghosts      map[uint64]struct{}
	order       []uint64 // the ghosts, a ring
	oldest      int
}

// add queues a new object.
func (f *fifo) add(o *object) {
	if _, ok := f.ghosts[o.hash]; ok {
		delete(f.ghosts, o.hash)
		o.queue = queueMain
		f.main.push(o)
		return
	}
	o.queue = queueSmall
	f.small.push(o)
}

func (f *fifo) of(o *object) *queue {
	if o.queue == queueMain {
		return &f.main
	}
	return &f.small
}

// remove takes an object out of its queue.
func (f *fifo) remove(o *object) {
	f.of(o).remove(o)
	o.queue = queueNone
}

// reweigh corrects the weight of a queued object.
func (f *fifo) reweigh(o *object, weight int64) {
	f.of(o).weight += weight - o.weight
	o.weight = weight
}

// victim takes the next object to forget out of its queue, or returns nil when there is none. It passes over objects
// whose body is still coming: forgetting them frees nothing.
func (f *fifo) victim() *object {
	// Each step takes an object out, moves one to main, or uses up one of its at most maxFreq rounds.
	for steps := (f.small.n + f.main.n) * (maxFreq + 2); steps > 0; steps-- {
		if f.small.n > 0 && (f.small.weight*10 > f.small.weight+f.main.weight || f.main.n == 0) {
			o := f.small.back
			f.small.remove(o)
			if o.freq > 0 || coming(o) {
				o.freq = 0
				o.queue = queueMain
				f.main.push(o)
				continue
			}
			o.queue = queueNone
			f.remember(o.hash)
			return o
		}
		o := f.main.back
		f.main.remove(o)
		if o.freq == 0 && !coming(o) {
			o.queue = queueNone
			return o
		}
		o.freq = max(o.freq, 1) - 1
		f.main.push(o)
	}
	return nil
}

func coming(o *object) bool { return o.body != nil && !o.body.whole.Load() }

// remember keeps a hash among the ghosts, of which there are as many as objects, and some.
func (f *fifo) remember(hash uint64) {
	if f.ghosts == nil {
		f.ghosts = map[uint64]struct{}{}
	}
	f.ghosts[hash] = struct{}{}
	if room := f.small.n + f.main.n + 64; len(f.order) < room {
		f.order = append(f.order, hash)
		return
	}
	if f.oldest >= len(f.order) {
		f.oldest = 0
	}
	delete(f.ghosts, f.order[f.oldest])
	f.order[f.oldest] = hash
	f.oldest++
}
