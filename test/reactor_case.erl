%%% What the suites of the reactor share: a case with a bystander, counts of what may leak, and the log.
%%%
%%% `begin_case/1' counts descriptors, ports, processes, threads and protocol objects, begins to
%%% collect the log, opens a listener and starts a bystander: a connection that echoes all through
%%% the case and compares every byte. `end_case/1' wants one more echo from it, then waits until all
%%% counts are back, and looks at what was logged.
-module(reactor_case).

-include_lib("stdlib/include/assert.hrl").

%% The application and the frame of a case
-export([start/1, stop/0, begin_case/1, end_case/1]).
%% Connections
-export([listen/0, connect/1, connect/2, accept/1, open/1, open/2, open/3, handoff/1, handoff/2]).
-export([reset/1, await_closed/1, echoes/2]).
%% Python
-export([use/1, exec/1, eval/1, ledger/0, await_ledger/1, loss_reasons/0]).
%% Waiting
-export([wait_until/2, wait_until/3]).
%% Counts
-export([counts/0, await_counts/1, excess/2, protocols/0, memory_kb/0]).
%% Bystander
-export([start_bystander/1, stop_bystander/1]).
%% Log
-export([logged/0, logged/1, forget_log/0, await_logged/1]).
%% Logger handler
-export([log/2]).

-define(PATIENCE_MS, 20000).
-define(LOG, reactor_case_log).
-define(RECEIVE_TIMEOUT_MS, 30000).

%%--------------------------------------------------------------------------------------------------
%% The application and the frame of a case

%% Starts the application afresh with these settings and no others.
start(Settings) ->
    stop(),
    [application:unset_env(py_reactor, Key) || {Key, _} <- application:get_all_env(py_reactor)],
    maps:foreach(fun(Key, Value) -> application:set_env(py_reactor, Key, Value) end, Settings),
    {ok, _} = application:ensure_all_started(py_reactor),
    ok = py:exec(helpers()),
    ok.

stop() ->
    case application:stop(py_reactor) of
        ok -> ok;
        {error, {not_started, py_reactor}} -> ok
    end.

begin_case(Config) ->
    ?LOG = ets:new(?LOG, [named_table, public, ordered_set]),
    ok = logger:add_handler(?LOG, ?MODULE, #{level => all, filters => [], filter_default => log}),
    ok = py:exec("import reactor_case; reactor_case.ledger.forget()"),
    Counts = settled_counts(),
    Listener = listen(),
    Bystander = start_bystander(Listener),
    [{listener, Listener}, {counts, Counts}, {bystander, Bystander} | Config].

%% For end_per_testcase, which fails a case by its result only. Of a case that failed only its
%% connections are closed, lest the next one fails with it.
end_case(Config) ->
    try
        case proplists:get_value(tc_status, Config) of
            ok -> check_end(Config);
            _ -> [gen_tcp:close(Port) || Port <- erlang:ports(), is_socket(Port)]
        end
    of
        _ -> ok
    catch
        Class:Reason:Stack -> {fail, {Class, Reason, Stack}}
    after
        logger:remove_handler(?LOG),
        ets:delete(?LOG)
    end.

check_end(Config) ->
    stop_bystander(proplists:get_value(bystander, Config)),
    ok = gen_tcp:close(proplists:get_value(listener, Config)),
    await_counts(proplists:get_value(counts, Config)),
    ?assertEqual([], logged(fun is_forbidden/1)).

is_socket(Port) ->
    erlang:port_info(Port, name) =:= {name, "tcp_inet"}.

%% What the VM says when somebody's descriptor was closed or taken under it.
is_forbidden(#{text := Text}) ->
    re:run(Text, "[Bb]ad (input|output)|stealing control|driver_select|enif_select") =/= nomatch.

%%--------------------------------------------------------------------------------------------------
%% Connections

listen() ->
    {ok, Listener} = gen_tcp:listen(0, [
        binary, {active, false}, {reuseaddr, true}, {backlog, 1024}, {ip, {127, 0, 0, 1}}
    ]),
    Listener.

connect(Listener) ->
    connect(Listener, []).

connect(Listener, Options) ->
    {ok, Port} = inet:port(Listener),
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false} | Options]),
    Client.

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener, ?PATIENCE_MS),
    Socket.

%% A client whose other end the present factory serves.
open(Listener) ->
    open(Listener, #{}).

open(Listener, Info) ->
    Client = connect(Listener),
    ok = handoff(accept(Listener), Info),
    Client.

open(Listener, Info, Context) ->
    Client = connect(Listener),
    ok = py_reactor_context:handoff(Context, accept(Listener), Info),
    Client.

%% As an accept loop does it: by number.
handoff(Socket) ->
    handoff(Socket, #{}).

handoff(Socket, Info) ->
    {ok, Fd} = inet:getfd(Socket),
    py_reactor_context:handoff(Fd, Info).

%% Closes without a farewell: the peer gets RST.
reset(Client) ->
    _ = inet:setopts(Client, [{linger, {true, 0}}]),
    gen_tcp:close(Client).

%% Waits for the end of the stream, or for a reset; returns what came before it.
await_closed(Client) ->
    await_closed(Client, []).

await_closed(Client, Received) ->
    case gen_tcp:recv(Client, 0, ?RECEIVE_TIMEOUT_MS) of
        {ok, Data} ->
            await_closed(Client, [Received, Data]);
        {error, Reason} when Reason =:= closed; Reason =:= econnreset ->
            ok = gen_tcp:close(Client),
            iolist_to_binary(Received)
    end.

%% Sends and wants the same back.
echoes(Client, Data) ->
    ok = gen_tcp:send(Client, Data),
    {ok, Echo} = gen_tcp:recv(Client, byte_size(Data), ?RECEIVE_TIMEOUT_MS),
    true = Data =:= Echo,
    ok.

%%--------------------------------------------------------------------------------------------------
%% Python

%% Sets the protocol factory: an expression in which every module may be named.
use(Factory) ->
    exec(["reactor.set_protocol_factory(", Factory, ")"]).

exec(Code) ->
    ok = py:exec(["import erlang.reactor as reactor, reactor_case\n", Code]).

eval(Expression) ->
    {ok, Value} = py:eval(Expression),
    Value.

%% How many counted protocols were made, lost once, and lost more often.
ledger() ->
    eval("__import__('reactor_case').ledger.totals()").

%% The close_reason of every counted protocol that was lost, in the order of the losses.
loss_reasons() ->
    eval("__import__('reactor_case').ledger.reasons").

%% Waits until so many were made, and each was lost exactly once.
await_ledger(Made) ->
    Wanted = #{<<"made">> => Made, <<"lost_once">> => Made, <<"lost_more">> => 0},
    wait_until("every protocol is lost once", fun() -> ledger() end, Wanted).

%% The module `reactor_case', unless an earlier start has made it: Python outlives the application.
helpers() ->
    <<
        "import sys, types\n"
        "fresh = 'reactor_case' not in sys.modules\n"
        "module = sys.modules.setdefault('reactor_case', types.ModuleType('reactor_case'))\n"
        "if fresh: exec('''\n"
        "import collections, gc\n"
        "import erlang.reactor as reactor\n"
        "\n"
        "class Ledger:\n"
        "    def __init__(self):\n"
        "        self.forget()\n"
        "    def forget(self):\n"
        "        self.losses = []\n"
        "        self.reasons = []\n"
        "    def make(self):\n"
        "        self.losses.append(0)\n"
        "        return len(self.losses) - 1\n"
        "    def lose(self, protocol):\n"
        "        self.losses[protocol.serial] += 1\n"
        "        self.reasons.append(protocol.close_reason)\n"
        "    def totals(self):\n"
        "        once = self.losses.count(1)\n"
        "        more = len(self.losses) - once - self.losses.count(0)\n"
        "        return dict(made=len(self.losses), lost_once=once, lost_more=more)\n"
        "\n"
        "ledger = Ledger()\n"
        "\n"
        "class Counted(reactor.Protocol):\n"
        "    # In __new__, as subclasses have an __init__ that raises, or one without super().\n"
        "    def __new__(cls, *args, **kwargs):\n"
        "        self = super().__new__(cls)\n"
        "        self.serial = ledger.make()\n"
        "        return self\n"
        "    def connection_lost(self):\n"
        "        ledger.lose(self)\n"
        "\n"
        "class Echo(Counted):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data\n"
        "\n"
        "class Bystander(reactor.Protocol):\n"
        "    def data_received(self, data):\n"
        "        self.write_buffer += data\n"
        "\n"
        "def protocols():\n"
        "    gc.collect()\n"
        "    return dict(collections.Counter(\n"
        "        type(o).__qualname__ for o in gc.get_objects() if issubclass(type(o), reactor.Protocol)\n"
        "    ))\n"
        "''', vars(module))\n"
    >>.

%%--------------------------------------------------------------------------------------------------
%% Waiting

%% Waits for a fact.
wait_until(What, Fact) ->
    wait_until(What, Fact, true).

wait_until(What, Ask, Wanted) ->
    wait_until(What, Ask, Wanted, deadline()).

wait_until(What, Ask, Wanted, Deadline) ->
    case Ask() of
        Wanted ->
            ok;
        Other ->
            case erlang:monotonic_time(millisecond) > Deadline of
                true ->
                    error({never, What, {wanted, Wanted}, {is, Other}});
                false ->
                    timer:sleep(5),
                    wait_until(What, Ask, Wanted, Deadline)
            end
    end.

deadline() ->
    erlang:monotonic_time(millisecond) + ?PATIENCE_MS.

%%--------------------------------------------------------------------------------------------------
%% Counts

%% What must not grow. Lists rather than numbers where they show what is left over.
counts() ->
    #{
        descriptors => length(names("/proc/self/fd")),
        ports => length(erlang:ports()),
        processes => length(erlang:processes()),
        threads => length(threads()),
        protocols => protocols()
    }.

%% Waits until nothing is left over. On failure the difference is shown by name.
await_counts(Before) ->
    try
        wait_until("nothing is left over", fun() -> excess(counts(), Before) end, #{})
    catch
        error:Reason ->
            Left = #{
                fds => [{Fd, file:read_link("/proc/self/fd/" ++ Fd)} || Fd <- names("/proc/self/fd")],
                threads => threads(),
                processes => [{P, process_info(P, [registered_name, initial_call])} || P <- processes()]
            },
            error({left_over, Reason, Left})
    end.

%% What there is more of than before. Less is no fault: what passes, like a process of the logger, may
%% have been there at the beginning.
excess(Now, Before) ->
    maps:filtermap(fun(Key, Value) -> more(Value, maps:get(Key, Before, 0)) end, Now).

more(Now, Before) when is_map(Now), is_map(Before) ->
    case excess(Now, Before) of
        Excess when map_size(Excess) > 0 -> {true, Excess};
        _ -> false
    end;
more(Now, Before) when Now > Before ->
    {true, {Now, instead_of, Before}};
more(_Now, _Before) ->
    false.

%% The counts once they stay the same: those of the case before may still be going down.
settled_counts() ->
    settled_counts(counts()).

settled_counts(Before) ->
    timer:sleep(20),
    case counts() of
        Before -> Before;
        Other -> settled_counts(Other)
    end.

%% Live protocol objects by class.
protocols() ->
    eval("__import__('reactor_case').protocols()").

%% Resident memory of this node.
memory_kb() ->
    {ok, Status} = file:read_file("/proc/self/status"),
    {match, [Kb]} = re:run(Status, "VmRSS:\\s+(\\d+)", [{capture, all_but_first, list}]),
    list_to_integer(Kb).

names(Folder) ->
    {ok, Names} = file:list_dir(Folder),
    Names.

%% Without the courier, which the library makes for itself when it first needs it.
threads() ->
    [Name || Task <- names("/proc/self/task"), (Name = thread_name(Task)) =/= <<"py courier">>].

thread_name(Task) ->
    case file:read_file("/proc/self/task/" ++ Task ++ "/comm") of
        {ok, Name} -> string:trim(Name);
        {error, _} -> <<"ended">>
    end.

%%--------------------------------------------------------------------------------------------------
%% Bystander

start_bystander(Listener) ->
    ok = use("reactor_case.Bystander"),
    Client = open(Listener),
    Bystander = spawn_link(fun() ->
        receive
            go -> echo_for_ever(Client, 0)
        end
    end),
    ok = gen_tcp:controlling_process(Client, Bystander),
    Bystander ! go,
    Bystander.

%% One more echo must come back, whole; then it closes. Returns the number of its rounds.
stop_bystander(Bystander) ->
    Bystander ! {stop, self()},
    receive
        {Bystander, Rounds} -> Rounds
    after ?RECEIVE_TIMEOUT_MS ->
        error(bystander_hangs)
    end.

echo_for_ever(Client, Round) ->
    ok = echoes(Client, rand:bytes(size_of(Round))),
    receive
        {stop, From} ->
            ok = echoes(Client, rand:bytes(1000)),
            ok = gen_tcp:close(Client),
            From ! {self(), Round},
            unlink(From)
    after pause_ms(Round) ->
        echo_for_ever(Client, Round + 1)
    end.

size_of(Round) -> element(Round rem 4 + 1, {1, 64, 10240, 200000}).

%% Sometimes long enough to be parked with the default linger.
pause_ms(Round) when Round rem 8 =:= 7 -> 30;
pause_ms(_) -> 2.

%%--------------------------------------------------------------------------------------------------
%% Log

%% What was logged in this case: maps with level, text, and what the report holds.
logged() ->
    [Line || {_, Line} <- ets:tab2list(?LOG)].

%% The lines that satisfy a predicate, or that hold all that a map holds.
logged(Predicate) when is_function(Predicate) ->
    lists:filter(Predicate, logged());
logged(Wanted) ->
    logged(fun(Line) -> maps:with(maps:keys(Wanted), Line) =:= Wanted end).

forget_log() ->
    true = ets:delete_all_objects(?LOG),
    ok.

%% Waits for a line, and returns it.
await_logged(Wanted) ->
    await_logged(Wanted, deadline()).

await_logged(Wanted, Deadline) ->
    case logged(Wanted) of
        [Line | _] ->
            Line;
        [] ->
            case erlang:monotonic_time(millisecond) > Deadline of
                true ->
                    error({never_logged, Wanted, logged()});
                false ->
                    timer:sleep(5),
                    await_logged(Wanted, Deadline)
            end
    end.

%% @private
log(#{level := Level, msg := Message} = Event, _Handler) ->
    Report =
        case Message of
            {report, Map} when is_map(Map) -> Map;
            _ -> #{}
        end,
    Text = logger_formatter:format(Event, #{template => [msg], single_line => false}),
    Line = Report#{level => Level, text => unicode:characters_to_binary(Text)},
    ets:insert(?LOG, {erlang:unique_integer([monotonic]), Line}).
