package pipeline_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/bermedge/berm/userspace/pipeline"
)

func TestDiet(t *testing.T) {
	var d pipeline.Diet
	fields := stage{"fields", func(x *pipeline.Exchange) pipeline.Action {
		x.Status = http.StatusOK
		for _, name := range []string{"X-Powered-By", "X-Debug-Id", "X-Debug-Where", "X-Debugger", "Server", "Etag"} {
			x.Head = append(x.Head, pipeline.Field{Name: name, Values: []string{"a"}})
		}
		// A hook of a stage adds what is dropped all the same.
		x.OnAnswer(func(x *pipeline.Exchange) { x.SetExtra("X-Debug-Late", "a") })
		return x.Answer("fields")
	}}
	p, err := pipeline.New([]pipeline.Stage{pipeline.Identify{}, fields}, pipeline.WithDiet(&d))
	if err != nil {
		t.Fatal(err)
	}
	get := func() http.Header {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://example.com/", nil))
		return w.Result().Header
	}
	if h := get(); h.Get("X-Powered-By") == "" || d.Dropped.Load() != 0 {
		t.Errorf("without a diet fields are gone: %v", h)
	}
	d.Apply(pipeline.DietConfig{Drop: []string{"x-powered-by", "X-Debug-*", "X-Absent"}})
	h := get()
	for name, want := range map[string]bool{"X-Powered-By": false, "X-Debug-Id": false, "X-Debug-Where": false, "X-Debug-Late": false, "X-Debugger": true, "Server": true, "Etag": true} {
		if (h.Get(name) != "") != want {
			t.Errorf("%s: there %v, want %v", name, !want, want)
		}
	}
	if n := d.Dropped.Load(); n != 4 {
		t.Errorf("dropped %d fields, want 4", n)
	}
	d.Apply(pipeline.DietConfig{})
	if h := get(); h.Get("X-Powered-By") == "" {
		t.Errorf("after the diet: %v", h)
	}
}

func TestDietMistakes(t *testing.T) {
	for drop, want := range map[string]string{
		"X-Powered-By": "", "X-*": "which clients cannot do without", "X-D*": "", "Vary": "which clients cannot do without",
		"set-cookie": "which clients cannot do without", "Content-*": "which clients cannot do without", "*": "no field's name",
		"": "no field's name", "a b": "no field's name", "X-*-Y": "no field's name", ":status": "no field's name",
	} {
		err := pipeline.DietConfig{Drop: []string{drop}}.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("drop %q: %v, want %q", drop, err, want)
		}
	}
	if err := (pipeline.DietConfig{Drop: []string{"A", "a"}}).Validate(); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Error(err)
	}
}
