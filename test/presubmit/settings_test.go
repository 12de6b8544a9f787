package presubmit

import (
	"encoding"
	"fmt"
	"go/ast"
	"path"
	"reflect"
	"strings"
	"testing"

	"github.com/bermedge/berm/userspace/anycast"
	"github.com/bermedge/berm/userspace/fec"
	"github.com/bermedge/berm/userspace/origin"
)

// setting is one key of the configuration file.
type setting struct {
	key, kind, fallback, doc string
}

// entries hold what an entry of a map or list is before the file fills it.
var entries = map[reflect.Type]reflect.Value{
	reflect.TypeFor[origin.Config]():   reflect.ValueOf(origin.DefaultConfig()),
	reflect.TypeFor[fec.RelayConfig](): reflect.ValueOf(fec.DefaultRelay()),
	reflect.TypeFor[anycast.Peer]():    reflect.ValueOf(anycast.DefaultPeer()),
	reflect.TypeFor[anycast.BFD]():     reflect.ValueOf(anycast.DefaultBFD()),
}

// settings walks a configuration's type by its yaml tags. value holds the defaults.
func settings(comments map[string]string, key string, typ reflect.Type, value reflect.Value, doc string) []setting {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
		if value.IsValid() && !value.IsNil() {
			value = value.Elem()
		} else {
			value = entries[typ] // what it starts from once it is there
		}
	}
	switch {
	case isScalar(typ), typ.Kind() == reflect.Slice && isScalar(typ.Elem()):
		return []setting{{key, kindOf(typ), show(value), doc}}
	case typ.Kind() == reflect.Slice:
		return append([]setting{{key, "list", "", doc}}, settings(comments, key+"[]", typ.Elem(), entries[typ.Elem()], "")...)
	case typ.Kind() == reflect.Map:
		if isScalar(typ.Elem()) || typ.Elem().Kind() == reflect.Slice && isScalar(typ.Elem().Elem()) {
			return []setting{{key, "map of " + kindOf(typ.Elem()), "", doc}}
		}
		return append([]setting{{key, "map", "", doc}}, settings(comments, key+".NAME", typ.Elem(), entries[typ.Elem()], "")...)
	case typ.Kind() != reflect.Struct:
		return []setting{{key, typ.String(), show(value), doc}}
	}
	var all []setting
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if !f.IsExported() || name == "-" {
			continue
		}
		under := value
		if value.IsValid() {
			under = value.Field(i)
		}
		full := strings.TrimPrefix(key+"."+name, ".")
		if name == "" && (f.Anonymous || strings.Contains(options, "inline")) {
			full = key
		}
		doc := comments[typ.PkgPath()+"."+typ.Name()+"."+f.Name]
		doc = strings.TrimPrefix(strings.TrimPrefix(doc, f.Name+" "), "is ") // in the table the key stands there
		all = append(all, settings(comments, full, f.Type, under, doc)...)
	}
	return all
}

var unmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

func isScalar(typ reflect.Type) bool {
	if typ.Implements(unmarshaler) || reflect.PointerTo(typ).Implements(unmarshaler) {
		return true
	}
	switch typ.Kind() {
	case reflect.Struct, reflect.Map, reflect.Slice, reflect.Pointer, reflect.Interface, reflect.Func, reflect.Chan:
		return false
	default:
		return true
	}
}

// kindOf says in an operator's words what to write.
func kindOf(typ reflect.Type) string {
	if typ.Kind() == reflect.Slice {
		return "list of " + kindOf(typ.Elem())
	}
	switch name := typ.String(); name {
	case "time.Duration":
		return "duration"
	case "netip.Addr":
		return "address"
	case "netip.Prefix":
		return "prefix"
	case "netip.AddrPort":
		return "address:port"
	default:
		if typ.PkgPath() != "" && typ.Kind() != reflect.String && isScalar(typ) {
			return strings.ToLower(typ.Name())
		}
	}
	switch typ.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "number"
	default:
		return "whole number"
	}
}

// show prints a default, and nothing for one that is empty.
func show(v reflect.Value) string {
	if !v.IsValid() || v.IsZero() && v.Kind() != reflect.Bool || v.Kind() == reflect.Slice && v.Len() == 0 {
		return ""
	}
	if s, ok := v.Interface().(fmt.Stringer); ok {
		return s.String()
	}
	if v.Kind() == reflect.Slice {
		var parts []string
		for i := range v.Len() {
			parts = append(parts, show(v.Index(i)))
		}
		return strings.Join(parts, ", ")
	}
	return fmt.Sprint(v.Interface())
}

// fieldComments reads what stands above or beside every field of a struct, by
// "import path.Type.Field", as reflection names it.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	comments := map[string]string{}
	for _, f := range goFiles(t) {
		ast.Inspect(f.File, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			fields, ok := spec.Type.(*ast.StructType)
			if !ok {
				return false
			}
			for _, field := range fields.Fields.List {
				text := strings.Join(strings.Fields(field.Doc.Text()+" "+field.Comment.Text()), " ")
				for _, name := range field.Names {
					comments[path.Join(module, f.dir())+"."+spec.Name.Name+"."+name.Name] = text
				}
			}
			return false
		})
	}
	return comments
}
