package cache

import (
	"errors"
	"io"

	"github.com/bermedge/berm/userspace/pipeline"
)

// fill brings the body home. What breaks off, or turns out too large to keep, leaves the store.
func (c *Cache) fill(f *flight, o *object, src io.ReadCloser) {
	b := o.body
	defer b.Close()
	defer src.Close() // nothing was written to it
	stored := f.stored
	forget := func(why pipeline.Reason) {
		if stored {
			c.store.removeBody(o.res, b)
			c.stats.reject(why)
			stored = false
		}
	}
	err := c.pump(f, b, src, forget)
	if b.finish(err) != nil {
		forget(whyIncomplete)
		c.stats.incomplete.Add(1)
		return
	}
	if stored {
		c.store.settle(o)
	}
}

// pump copies src to b until its end.
func (c *Cache) pump(f *flight, b *body, src io.Reader, forget func(pipeline.Reason)) error {
	window := false
	narrow := func(why pipeline.Reason) {
		forget(why)
		b.discard()
		window = true
	}
	if !f.stored {
		narrow("")
	}
	var probe [1]byte
	for {
		p, err := b.room()
		switch {
		case errors.Is(err, errNoRoom):
			narrow(whyMemory)
			continue
		case err != nil:
			return err
		case p == nil: // all has come: only the end, or too much, can follow
			p = probe[:]
		}
		n, err := src.Read(p)
		if n > 0 && &p[0] == &probe[0] {
			return errors.New("the origin sent more than it announced")
		}
		b.commit(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !window && b.size > int64(c.cfg.MaxObject) {
			narrow(whyTooLarge)
		}
		if window {
			if err := b.throttle(f.ctx); err != nil {
				return err
			}
		}
	}
}
