#!/usr/bin/env python3
"""Greedy parity of an OpenAI-compatible multi-LoRA server against the reference files (transformers+PEFT, fp32).

  check_parity.py http://127.0.0.1:8000 --ref tests/fixtures/smollm2/reference (the default)
     --select model            adapter name goes into the "model" field (default); base name from --base-model
     --select header --header-name X-Adapter-Id      model = base, adapter name in a header
     --select field  --field-name adapter            model = base, adapter name in a JSON field
     --model-format '{base}:{adapter}'               how the model field is built with --select model
     --concurrency 8 --shuffle     mix base and all adapters in flight at once (batch isolation)
     --modes completions,chat      --ignore-eos      send "ignore_eos": true and compare all 48 tokens
     --logprobs  compare token logprobs   --nll  perplexity by echo+logprobs (needs echo support)
     --header 'Authorization: Bearer x'   --adapters a,b   --json out.json
Rule: a difference counts as a FAILURE only where the reference's margin (top1-top2 logit) is > --margin (0.5).
Only the standard library + requests are needed; text is compared (token index found from character offsets).
Exit 0 = no failures."""
import argparse,json,glob,os,sys,random,time,math,threading
from concurrent.futures import ThreadPoolExecutor
import requests
ap=argparse.ArgumentParser(); A=ap.add_argument
A('url'); A('--ref',action='append'); A('--select',default='model',choices=['model','header','field']); A('--header-name',default='X-Adapter-Id'); A('--field-name',default='adapter')
A('--base-model',default='base'); A('--model-format',default='{adapter}'); A('--concurrency',type=int,default=1); A('--shuffle',action='store_true'); A('--modes',default='completions,chat')
A('--ignore-eos',action='store_true'); A('--logprobs',action='store_true'); A('--nll',action='store_true'); A('--nll-tol',type=float,default=0.01); A('--margin',type=float,default=0.5); A('--logprob-tol',type=float,default=0.25)
A('--header',action='append',default=[]); A('--adapters'); A('--skip',default=''); A('--limit',type=int,default=0); A('--max-tokens',type=int,default=48); A('--timeout',type=float,default=300); A('--json'); A('-v',action='store_true')
a=ap.parse_args(); refs=a.ref or [os.path.join(os.path.dirname(os.path.abspath(__file__)),"..","fixtures","smollm2","reference")]
HD=dict(h.split(':',1) for h in a.header); HD={k.strip():v.strip() for k,v in HD.items()}
R={}
for d in refs:
    for f in sorted(glob.glob(d+'/*.json')):
        j=json.load(open(f)); n=j['name']
        if a.adapters and n not in a.adapters.split(','): continue
        if n in a.skip.split(','): continue
        R.setdefault(n,[]).append(j)
if not R: sys.exit('no reference files')
S=threading.local()
def call(path,name,body):
    if not hasattr(S,'s'): S.s=requests.Session()
    h=dict(HD); b=dict(body); b['model']=a.base_model
    if name!='base':
        if a.select=='model': b['model']=a.model_format.format(base=a.base_model,adapter=name)
        elif a.select=='header': h[a.header_name]=name
        else: b[a.field_name]=name
    r=S.s.post(a.url.rstrip('/')+path,json=b,headers=h,timeout=a.timeout)
    if r.status_code!=200: raise RuntimeError(f'HTTP {r.status_code}: {r.text[:200]}')
    return r.json()
def compare(p,text,finish):
    """-> (tokens agreeing, tokens of the reference, margin at the first difference or None)"""
    e=p['eos_at']; full=p['text_ignore_eos'] if a.ignore_eos else p['text']; off=p['char_end_all'] if a.ignore_eos else p['char_end']
    n=min(a.max_tokens,len(p['greedy_ids']) if a.ignore_eos else (e if e is not None else len(p['greedy_ids'])))
    want=full if n==len(off) else full[:off[n-1] if n else 0]
    if a.ignore_eos:   # servers differ in whether special tokens are shown: compare without them
        for s in ('<|im_end|>','<|im_start|>','<|endoftext|>'): want=want.replace(s,''); text=text.replace(s,'')
        off=None
    if text==want:
        if not a.ignore_eos and e is not None and e<a.max_tokens and finish not in (None,'stop','eos','end'): return n,n+1,p['margin'][e]
        return n,n,None
    c=next((i for i,(x,y) in enumerate(zip(text,want)) if x!=y),min(len(text),len(want)))
    if off is None: # ignore_eos: recompute offsets without specials
        off=p['char_end_plain']
    k=next((i for i,o in enumerate(off[:n]) if o>c),n)
    if k>=n: k=n if e is not None and n==e else n-1     # went on past EOS
    return k,n,p['margin'][min(k,len(p['margin'])-1)]
jobs=[(n,j,p,m) for n,js in R.items() for j in js for p in (j['prompts'][:a.limit] if a.limit else j['prompts']) for m in a.modes.split(',')]
if a.shuffle: random.Random(1).shuffle(jobs)
res=[]; lock=threading.Lock()
def work(job):
    n,j,p,m=job; t=time.time()
    try:
        body=dict(max_tokens=a.max_tokens,temperature=0)
        if a.ignore_eos: body['ignore_eos']=True; body['skip_special_tokens']=False
        if m=='completions':
            body['prompt']=p['rendered']
            if a.logprobs: body['logprobs']=5
            o=call('/v1/completions',n,body); ch=o['choices'][0]; text=ch['text']
        else:
            body['messages']=p['messages']; o=call('/v1/chat/completions',n,body); ch=o['choices'][0]; text=ch['message']['content'] or ''
        k,N,mg=compare(p,text,ch.get('finish_reason')); lpd=None; ptok=(o.get('usage') or {}).get('prompt_tokens')
        if a.logprobs and m=='completions' and ch.get('logprobs'):
            x=ch['logprobs'].get('token_logprobs') or []; lpd=max([abs(u-v) for u,v in zip(x[:k],p['logprob'][:k]) if u is not None] or [0])
        r=dict(adapter=n,prompt=p['id'],mode=m,agree=k,of=N,div_margin=mg,fail=mg is not None and mg>a.margin,lp_diff=lpd,prompt_tokens_ok=None if ptok is None else ptok==len(p['prompt_ids']),s=time.time()-t,got=text,want=p['text'])
    except Exception as ex: r=dict(adapter=n,prompt=p['id'],mode=m,agree=0,of=1,div_margin=None,fail=True,error=f'{type(ex).__name__}: {ex}',s=time.time()-t,lp_diff=None,prompt_tokens_ok=None)
    with lock: res.append(r)
    if a.v or r.get('error') or r['fail']: print(json.dumps(r,ensure_ascii=False)[:600],flush=True)
with ThreadPoolExecutor(a.concurrency) as ex: list(ex.map(work,jobs))
print(f"{'adapter':<16}{'mode':<13}{'n':>3} {'exact':>6} {'tokens agreeing':>16} {'diverged':>9} {'max margin':>10} {'FAIL':>5} {'lp diff':>8} {'ptok':>5}")
bad=0
for n in R:
    for m in a.modes.split(','):
        x=[r for r in res if r['adapter']==n and r['mode']==m]; d=[r['div_margin'] for r in x if r['div_margin'] is not None]; f=sum(r['fail'] for r in x); bad+=f
        lp=[r['lp_diff'] for r in x if r['lp_diff'] is not None]; lpm=max(lp) if lp else None
        if lpm is not None and lpm>a.logprob_tol: bad+=1; f=f'{f}+lp'
        pt=[r['prompt_tokens_ok'] for r in x if r['prompt_tokens_ok'] is not None]
        if pt and not all(pt): bad+=1
        print(f"{n:<16}{m:<13}{len(x):>3} {sum(r['agree']==r['of'] and not r['fail'] for r in x):>3}/{len(x):<3} {sum(r['agree'] for r in x):>8}/{sum(r['of'] for r in x):<7} {len(d):>7} {max(d) if d else 0:>10.3f} {f:>5} {'-' if lpm is None else f'{lpm:.4f}':>8} {'-' if not pt else f'{sum(pt)}/{len(pt)}':>5}")
if a.nll:
    print('perplexity (echo): engine / reference')
    for n,js in R.items():
        for j in js:
            N=j.get('nll') or {}
            sets=([('task',N['task'])] if 'task' in N else [])+([('general',N['general'])] if 'general' in N else [])+[('base on '+k,v) for k,v in (N.get('tasks') or {}).items()]
            for lab,s in sets:
                tot=cnt=an=ac=0
                try:
                    for t in s['texts']:
                        o=call('/v1/completions',n,dict(prompt=t['text'],max_tokens=1,temperature=0,echo=True,logprobs=1)); l=o['choices'][0]['logprobs']['token_logprobs'][1:len(t['ids'])]
                        if len(l)!=len(t['ids'])-1: raise RuntimeError('other number of tokens than the reference')
                        tot-=sum(l); cnt+=len(l)
                        if 'answer_start' in t: an-=sum(l[t['answer_start']-1:]); ac+=len(l)-t['answer_start']+1
                    q=math.exp(tot/cnt)/s['ppl_all']; da=(an/ac-s['mean_nll_answer']) if ac else 0; ok=1-3*a.nll_tol<=q<=1+a.nll_tol and abs(da)<=a.nll_tol; bad+=not ok
                    print(f'  {n:<16}{lab:<22}{math.exp(tot/cnt):10.4f} / {s["ppl_all"]:10.4f}  ratio {q:.5f}'+(f'  answer NLL {an/ac:.5f} / {s["mean_nll_answer"]:.5f}' if ac else '')+(' ok' if ok else ' FAIL'))
                except Exception as ex: print('  ',n,lab,'not measured:',ex); bad+=1
if a.json: json.dump(res,open(a.json,'w'),ensure_ascii=False,indent=0)
print('FAILURES:',bad); sys.exit(1 if bad else 0)
