# For gdb, which forgets where a kernel has moved when the kernel's symbols are read anew, as the kernel's own lx-symbols
# does: it is told again. Before it, vmm_vmlinux is set, the file that has them.
import gdb
import re


def vmm_keep_slide():
    if vmm_vmlinux not in [file.filename for file in gdb.objfiles()]:
        return
    said = gdb.execute('monitor linux', to_string=True)
    slide = re.search('moved by (0x[0-9a-f]+)', said)
    if slide is None or int(slide[1], 16) == 0:
        return
    per_cpu = ' -s .data..percpu 0' if '.data..percpu' in said else ''
    path = vmm_vmlinux.replace('\\', '\\\\').replace('"', '\\"')
    gdb.execute('symbol-file', to_string=True)
    gdb.execute('add-symbol-file "%s" -o %s%s' % (path, slide[1], per_cpu), to_string=True)


gdb.execute('define hookpost-symbol-file\npython vmm_keep_slide()\nend')
