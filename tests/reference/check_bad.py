#!/usr/bin/env python3
"""Uploads every bad adapter and checks: refused with 4xx (JSON error body), answered within --slow seconds, server alive, base output unchanged.

  check_bad.py http://127.0.0.1:8000 --cases tests/fixtures/bad (the default)
   --mode path       JSON {name-field: NAME, path-field: DIR}         (vLLM style: --endpoint /v1/load_lora_adapter)
   --mode multipart  one part per file of the directory, part name = file name; the adapter's name is in --endpoint '{name}'
   --endpoint '/v1/adapters/{name}' --method PUT     {name} is replaced
   --delete 'DELETE /v1/adapters/{name}'             called after a 2xx
   --probe-model base  --ref .../smollm2/reference/base.json  base completion after each case must equal the first tokens of the reference
   --names            also try the bad adapter names of names.json with control-good-mini
   --header 'Authorization: Bearer x'
Exit 0 = all as expected."""
import argparse,json,os,sys,time,urllib.parse
import requests
ap=argparse.ArgumentParser(); A=ap.add_argument; here=os.path.dirname(os.path.abspath(__file__))
A('url'); A('--cases',action='append'); A('--mode',default='path',choices=['path','multipart']); A('--endpoint',default='/v1/load_lora_adapter'); A('--method',default='POST'); A('--name-field',default='lora_name'); A('--path-field',default='lora_path');
A('--delete'); A('--probe-model',default='base'); A('--ref',default=here+'/../fixtures/smollm2/reference/base.json'); A('--names',action='store_true'); A('--header',action='append',default=[]); A('--slow',type=float,default=10); A('--only'); A('--json')
a=ap.parse_args(); HD={k.strip():v.strip() for k,v in (h.split(':',1) for h in a.header)}; S=requests.Session(); U=a.url.rstrip('/')
probe=json.load(open(a.ref))['prompts'][0]
def alive():
    try:
        r=S.post(U+'/v1/completions',json=dict(model=a.probe_model,prompt=probe['rendered'],max_tokens=16,temperature=0),headers=HD,timeout=120)
        if r.status_code!=200: return f'probe HTTP {r.status_code}'
        t=r.json()['choices'][0]['text']; return None if t.strip()==probe['text'].strip() or probe['text'].startswith(t) else f'probe output changed: {t!r}'
    except Exception as e: return f'server gone: {type(e).__name__}'
def send(name,path,kind):
    ep=U+a.endpoint.replace('{name}',urllib.parse.quote(name,safe='')); f=lambda **k: S.request(a.method,ep,timeout=60,**k)
    if a.mode=='path': return f(headers=HD,json={a.name_field:name,a.path_field:os.path.realpath(path)})
    return f(headers=HD,files=[(x,(x,open(f'{path}/{x}','rb').read())) for x in sorted(os.listdir(path))] or [('none',('none',b''))])
rows=[]; bad=0; base_err=alive()
if base_err: sys.exit('the server fails the probe before any test: '+base_err)
def one(name,path,kind,expect,label,mention=''):
    global bad
    t=time.time(); st=None; body=''
    try:
        r=send(name,path,kind)
        if r is None: rows.append((label,'skipped (mode)')); return
        st=r.status_code; body=r.text[:300]
    except requests.RequestException as e: body=f'{type(e).__name__}: {e}'[:200]
    dt=time.time()-t; pr=[]; c=st//100 if st else 0
    if c==0: pr.append('connection lost / timeout')
    elif c==5: pr.append('5xx')
    elif expect=='4xx' and c!=4: pr.append(f'accepted, should be 4xx')
    elif expect=='ok' and c!=2: pr.append('control refused')
    if c==4:
        try: e=json.loads(body if len(body)<300 else r.text); pr+=[] if 'error' in e or 'message' in e or 'detail' in e else ['no error field']
        except Exception: pr.append('4xx body is not JSON')
    words=[w.strip().lower() for w in mention.replace(' or ','/').split('/') if w.strip()]
    if c==4 and words and not any(w in r.text.lower() for w in words): pr.append(f'message should mention {mention!r}')
    if dt>a.slow: pr.append(f'slow {dt:.1f}s')
    if c==2 and expect!='ok' and not pr:   # accepted by policy: use it once, the answer may be anything but the server must live
        try: S.post(U+'/v1/completions',json=dict(model=name,prompt='Hello',max_tokens=4,temperature=0),headers=HD,timeout=120)
        except Exception: pr.append('use of the accepted adapter broke the connection')
    e=alive(); pr+=[e] if e else []
    if c==2 and a.delete: m,p=a.delete.split(' ',1); S.request(m,U+p.replace('{name}',urllib.parse.quote(name,safe='')),headers=HD,timeout=60,json={a.name_field:name})
    bad+=bool(pr); rows.append((label,st,expect,f'{dt:.2f}s','; '.join(pr) or 'ok',body[:140])); print(('FAIL ' if pr else 'ok   ')+f'{label:<38} {st} want {expect:<8} {dt:5.2f}s  '+('; '.join(pr) if pr else body[:100].replace(chr(10),' ')),flush=True)
for d in a.cases or [here+'/../fixtures/bad']:
    for c in json.load(open(d+'/cases.json')):
        if a.only and a.only not in c['name']: continue
        one('t-'+c['name'][:60],f"{d}/{c['path']}",c['kind'],c['expect'],c['name'],c.get('message_should_mention',''))
if a.names:
    for i,n in enumerate(json.load(open(here+'/bad/names.json'))): one(n,here+'/bad/control-good-mini','dir','either',f'name #{i} {n[:20]!r}')
esc=[p for p in ['/tmp/PICKLE_WAS_EXECUTED'] if os.path.exists(p)]
if esc: bad+=1; print('FAIL a pickle was executed:',esc)
if a.json: json.dump(rows,open(a.json,'w'),indent=0)
print('run',len(rows),'FAILURES:',bad); sys.exit(1 if bad else 0)
