// Package browser drives a headless Chromium over its debugging pipe (the Chrome DevTools Protocol), for tests of
// what only a browser does.
package browser

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Browser is a running Chromium with a profile of its own, which ends with it.
type Browser struct {
	cmd   *exec.Cmd
	out   bytes.Buffer // what it printed, once it has ended
	write *os.File
	dir   string
	ended chan struct{} // closed once nothing more is read

	mu    sync.Mutex
	last  int
	waits map[int]chan reply
}

type reply struct {
	ID     int             `json:"id"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// ErrGone is returned once the browser has ended.
var ErrGone = errors.New("the browser has ended")

// Start runs Chromium with more flags than those that a test needs always.
func Start(ctx context.Context, flags ...string) (_ *Browser, err error) {
	b := &Browser{waits: map[int]chan reply{}, ended: make(chan struct{})}
	if b.dir, err = os.MkdirTemp("", "berm-browser-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(b.dir))
		}
	}()
	itsIn, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	read, itsOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, itsIn.Close(), write.Close())
	}
	b.write = write
	b.cmd = exec.CommandContext(ctx, "chromium", append([]string{
		"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-dev-shm-usage", "--user-data-dir=" + b.dir, "--remote-debugging-pipe",
	}, flags...)...)
	b.cmd.Env = append(os.Environ(), "HOME="+b.dir)
	b.cmd.ExtraFiles = []*os.File{itsIn, itsOut} // 3 and 4
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.out
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b.cmd.Cancel = b.kill
	b.cmd.WaitDelay = 5 * time.Second
	err = b.cmd.Start()
	err = errors.Join(err, itsIn.Close(), itsOut.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start chromium: %w", err), write.Close(), read.Close())
	}
	go b.listen(read)
	return b, nil
}

// kill ends the browser with all its processes, which are a group.
func (b *Browser) kill() error { return syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) }

// listen hands out answers until the browser ends.
func (b *Browser) listen(read *os.File) {
	defer close(b.ended)
	defer func() { _ = read.Close() }()
	for r := bufio.NewReader(read); ; {
		msg, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var a reply
		if json.Unmarshal(msg[:len(msg)-1], &a) != nil || a.ID == 0 {
			continue // an event
		}
		b.mu.Lock()
		if wait := b.waits[a.ID]; wait != nil {
			wait <- a // has room
			delete(b.waits, a.ID)
		}
		b.mu.Unlock()
	}
}

// call asks for a method and waits for its result.
func (b *Browser) call(ctx context.Context, session, method string, params map[string]any, result any) error {
	wait := make(chan reply, 1)
	b.mu.Lock()
	b.last++
	id := b.last
	b.waits[id] = wait
	msg, err := json.Marshal(struct {
		ID      int            `json:"id"`
		Session string         `json:"sessionId,omitempty"`
		Method  string         `json:"method"`
		Params  map[string]any `json:"params,omitempty"`
	}{id, session, method, params})
	if err == nil {
		_, err = b.write.Write(append(msg, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case a := <-wait:
		if a.Error != nil {
			return fmt.Errorf("%s: %s", method, a.Error.Message)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.Result, result)
	case <-b.ended:
		return fmt.Errorf("%s: %w", method, ErrGone)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, context.Cause(ctx))
	}
}

// Close ends the browser and removes what it kept.
func (b *Browser) Close() error {
	_ = b.write.Close()
	_ = b.kill() // ended already, perhaps
	<-b.ended
	_ = b.cmd.Wait() // killed
	return os.RemoveAll(b.dir)
}

// Printed returns what the browser printed, after Close.
func (b *Browser) Printed() string { return b.out.String() }

// Page is a tab.
type Page struct {
	b       *Browser
	session string
}

// Open opens a page; it does not wait until it is loaded.
func (b *Browser) Open(ctx context.Context, url string) (*Page, error) {
	var target struct {
		ID string `json:"targetId"`
	}
	if err := b.call(ctx, "", "Target.createTarget", map[string]any{"url": "about:blank"}, &target); err != nil {
		return nil, err
	}
	var attached struct {
		Session string `json:"sessionId"`
	}
	if err := b.call(ctx, "", "Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &attached); err != nil {
		return nil, err
	}
	p := &Page{b, attached.Session}
	var done struct {
		Error string `json:"errorText"`
	}
	if err := b.call(ctx, p.session, "Page.navigate", map[string]any{"url": url}, &done); err != nil {
		return nil, err
	}
	if done.Error != "" {
		return nil, fmt.Errorf("open %s: %s", url, done.Error)
	}
	return p, nil
}

// Eval evaluates an expression, or what it promises, into result.
func (p *Page) Eval(ctx context.Context, expression string, result any) error {
	var a struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text      string `json:"text"`
			Exception struct {
				Description string `json:"description"`
			} `json:"exception"`
		} `json:"exceptionDetails"`
	}
	err := p.b.call(ctx, p.session, "Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &a)
	switch {
	case err != nil:
		return err
	case a.Exception != nil:
		return fmt.Errorf("in the page: %s %s", a.Exception.Text, a.Exception.Exception.Description)
	case result == nil || len(a.Result.Value) == 0:
		return nil
	}
	return json.Unmarshal(a.Result.Value, result)
}

// Screenshot returns the page as PNG.
func (p *Page) Screenshot(ctx context.Context, width, height int) ([]byte, error) {
	err := p.b.call(ctx, p.session, "Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}, nil)
	if err != nil {
		return nil, err
	}
	var shot struct {
		Data string `json:"data"`
	}
	if err := p.b.call(ctx, p.session, "Page.captureScreenshot", map[string]any{"format": "png"}, &shot); err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(shot.Data)
}
