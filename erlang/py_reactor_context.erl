%%% A context: one process, one Python worker thread, and the connections that it serves.
%%%
%%% The process starts and stops the worker and forwards what `enif_select' reports of parked
%%% connections. No byte of a connection passes through it. Its messages:
%%%
%%% - `{select, Connection, undefined, ready_input | ready_output}': a parked connection is ready;
%%% - `{py_worker, started}': once, while it starts;
%%% - `{py_worker, stopped}': the worker has closed everything and ended;
%%% - `{py_worker, {failed, Text}}': the worker could not start, or failed.
-module(py_reactor_context).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1, child_spec/1, stop/1]).
-export([handoff/2, handoff/3, stats/1, interrupt/1]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([context/0, options/0, descriptor/0, info/0, reason/0]).

-type context() :: pid() | atom().
%% A context process, or the name under which it is registered.

-type options() :: #{
    name => atom(),
    max_connections => pos_integer(),
    linger_ms => non_neg_integer(),
    pool_index => pos_integer()
}.
%% `name': registers the process. `max_connections' and `linger_ms': see the settings of the
%% application, which are the defaults. `pool_index': its place in the default pool, whose own
%% contexts alone have one.

-type descriptor() :: non_neg_integer() | gen_tcp:socket() | gen_udp:socket() | socket:socket().

-type info() :: #{
    addr => inet:ip_address() | string() | binary(),
    port => inet:port_number(),
    type => atom() | binary(),
    nodelay => boolean(),
    atom() | binary() => term()
}.
%% What Python gets as `client_info'. What it leaves out of `addr', `port' and `type' is filled in
%% from the socket. `nodelay' (default true) is not passed on: it says whether TCP_NODELAY is set.

-type reason() ::
    badf
    | {unsupported_fd, Kind :: atom()}
    | already_served
    | no_protocol_factory
    | overload
    | no_context
    | {protocol, Traceback :: binary()}
    | {bad_info, Explanation :: binary()}
    | {system, Explanation :: binary()}.

-record(state, {context :: py_nif:context()}).

%% How long a handoff waits to learn what became of the protocol. A worker that takes longer is
%% held up by a callback, and an acceptor must not be held up with it.
-define(VERDICT_TIMEOUT_MS, 1000).

%% How long a worker may take to close everything before its callback is interrupted, and again
%% before it is left behind.
-define(STOP_TIMEOUT_MS, 2000).

%% Longer than a context takes to leave a worker behind.
-define(SHUTDOWN_MS, 10000).

%% Between two tries to start: far fewer a second than the supervisor puts up with.
-define(RETRY_PAUSE_MS, 100).

%% The most that one connection's info may take, in the external term format.
-define(MAX_INFO_BYTES, 65536).

%% @doc Starts a context that belongs to the calling process.
-spec start_link(options()) -> {ok, pid()} | {error, term()}.
start_link(Options) when is_map(Options) ->
    case whereis(py_reactor_pool) of
        undefined -> {error, not_running};
        _ -> start_known(Options)
    end.

start_known(Options) ->
    case maps:keys(maps:without([name, max_connections, linger_ms, pool_index], Options)) of
        [] -> start_complete(complete(Options));
        [Key | _] -> {error, {bad_option, Key}}
    end.

start_complete({ok, #{name := Name} = Options}) when is_atom(Name), Name =/= undefined ->
    gen_server:start_link({local, Name}, ?MODULE, Options, []);
start_complete({ok, #{name := _}}) ->
    {error, {bad_option, name}};
start_complete({ok, Options}) ->
    gen_server:start_link(?MODULE, Options, []);
start_complete({error, _} = Error) ->
    Error.

%% The options of a context, completed from the settings of the application.
complete(Options) ->
    case py_reactor_settings:check() of
        {ok, Settings} ->
            Complete = maps:merge(maps:with([max_connections, linger_ms], Settings), Options),
            case py_reactor_settings:check_values(maps:with([max_connections, linger_ms], Complete)) of
                ok -> {ok, Complete};
                {error, {bad_setting, Key, _}} -> {error, {bad_option, Key}}
            end;
        {error, _} = Error ->
            Error
    end.

%% @doc A context under a supervisor; its `name', or this module's, is the child's id.
-spec child_spec(options()) -> supervisor:child_spec().
child_spec(Options) ->
    #{
        id => maps:get(name, Options, ?MODULE),
        start => {?MODULE, start_link, [Options]},
        shutdown => ?SHUTDOWN_MS
    }.

%% @doc Closes all connections of a context, each with its `connection_lost', and ends it.
-spec stop(context()) -> ok | {error, no_context}.
stop(Context) ->
    try
        gen_server:stop(Context)
    catch
        exit:noproc -> {error, no_context}
    end.

%% @doc Hands a descriptor to a context of the default pool.
%% @equiv handoff(Context, Descriptor, Info)
-spec handoff(descriptor(), info()) -> ok | {error, reason()}.
handoff(Descriptor, Info) ->
    handoff_to(py_reactor_pool:next(), Descriptor, Info).

%% @doc Hands a descriptor to a context, which serves it with a new protocol.
%%
%% The descriptor is consumed, whatever the answer: it is duplicated at once, here in the caller, so
%% that a raw number never waits in a mailbox, and the caller's own port or socket is closed. (An
%% integer that belongs to no port of the caller is duplicated only; its owner closes it.)
%%
%% `ok' means that the protocol was made and its `connection_made' has returned; or, if the worker
%% is held up for more than a second, that it will be made as soon as the worker goes on.
-spec handoff(context(), descriptor(), info()) -> ok | {error, reason()}.
handoff(Context, Descriptor, Info) ->
    handoff_to(py_reactor_pool:find(Context), Descriptor, Info).

%% @doc What a context counts, and `busy_ms', for how long its worker has been in the present turn.
-spec stats(context()) -> #{atom() => non_neg_integer()} | {error, no_context}.
stats(Context) ->
    case py_reactor_pool:find(Context) of
        {ok, Handle} -> py_nif:context_stats(Handle);
        {error, no_context} = Error -> Error
    end.

%% @doc Raises `erlang.Interrupted' in the callback that is running, if there is one. Code that waits
%% in C, as in `time.sleep', gets it when it comes back from there.
-spec interrupt(context()) -> ok | {error, no_context}.
interrupt(Context) ->
    case py_reactor_pool:find(Context) of
        {ok, Handle} -> py_nif:context_interrupt(Handle);
        {error, no_context} = Error -> Error
    end.

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init(map()) -> {ok, #state{}} | {stop, term()}.
init(#{max_connections := MaxConnections, linger_ms := LingerMs} = Options) ->
    process_flag(trap_exit, true),
    process_flag(message_queue_data, off_heap),
    case py_nif:context_start(MaxConnections, LingerMs) of
        {ok, Handle} ->
            receive
                {py_worker, started} ->
                    ok = py_reactor_pool:join(Handle, maps:get(pool_index, Options, none)),
                    {ok, #state{context = Handle}};
                {py_worker, {failed, Text}} ->
                    cannot_start(Text)
            end;
        {error, Text} ->
            cannot_start(Text)
    end.

%% As a rule there is no descriptor or thread left, which passes; the worker of the context that was
%% here before may hold the descriptors. The supervisor would have used up its restarts at once.
cannot_start(Text) ->
    timer:sleep(?RETRY_PAUSE_MS),
    {stop, {worker, Text}}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, {error, unknown_call}, #state{}}.
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}} | {stop, term(), #state{}}.
handle_info({select, Connection, undefined, Readiness}, State) when
    Readiness =:= ready_input; Readiness =:= ready_output
->
    _ = py_nif:ready(Connection, Readiness),
    {noreply, State};
handle_info({py_worker, {failed, Text}}, State) ->
    {stop, {worker, Text}, State};
handle_info({py_worker, stopped}, State) ->
    %% Not by us: a context without a worker serves nobody.
    {stop, {worker, stopped}, State};
handle_info({'EXIT', _NotOurParent, normal}, State) ->
    %% As it is for a process that does not trap exits.
    {noreply, State};
handle_info({'EXIT', _NotOurParent, Reason}, State) ->
    {stop, Reason, State};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate({worker, _}, _State) ->
    ok;
terminate(_Reason, #state{context = Handle}) ->
    ok = py_nif:context_stop(Handle),
    await_end(Handle, [interrupt, leave]).

await_end(Handle, [Next | Later]) ->
    receive
        {py_worker, _} -> ok
    after ?STOP_TIMEOUT_MS ->
        case Next of
            interrupt ->
                py_nif:context_interrupt(Handle),
                await_end(Handle, Later);
            leave ->
                ?LOG_WARNING(#{what => worker_left_behind, reason => "a callback does not return"})
        end
    end.

%%--------------------------------------------------------------------------------------------------
%% Handing over

handoff_to(Handle, Descriptor, Info) ->
    {Number, Close} = open_number(Descriptor),
    Answer =
        case {Handle, check_info(Info)} of
            {{ok, Context}, {ok, Known, Nodelay}} ->
                py_nif:handoff(Context, Number, Known, Nodelay);
            {{error, _} = Error, _} ->
                Error;
            {_, {error, _} = Error} ->
                Error
        end,
    _ = Close(),
    await_verdict(Answer).

await_verdict({ok, Ticket}) ->
    receive
        {Ticket, Verdict} -> Verdict
    after ?VERDICT_TIMEOUT_MS ->
        case py_nif:cancel(Ticket) of
            true ->
                ok;
            false ->
                receive
                    {Ticket, Verdict} -> Verdict
                end
        end
    end;
await_verdict({error, _} = Error) ->
    Error.

%% The number of a descriptor, and what closes the caller's own hold on it. A number that is not open
%% any more is found out by the native side, which says so.
open_number(Number) when is_integer(Number), Number bsr 31 =/= 0 ->
    {-1, fun() -> ok end};
open_number(Number) when is_integer(Number) ->
    {Number, fun() -> close_port_of(Number) end};
open_number({'$socket', _} = Socket) ->
    {number(fun() -> socket:getopt(Socket, {otp, fd}) end), fun() -> catch socket:close(Socket) end};
open_number(Socket) when is_port(Socket) ->
    {number(fun() -> inet:getfd(Socket) end), fun() -> catch gen_tcp:close(Socket) end};
%% With {inet_backend, socket}: `inet:getfd/1' does not know those.
open_number({'$inet', _, _} = Socket) ->
    {number(fun() -> inet_number(Socket) end), fun() -> catch gen_tcp:close(Socket) end}.

inet_number(Socket) ->
    case inet:getopts(Socket, [fd]) of
        {ok, [{fd, Number}]} -> {ok, Number};
        {error, _} = Error -> Error
    end.

number(Ask) ->
    try Ask() of
        {ok, Number} -> Number;
        {error, _} -> -1
    catch
        _:_ -> -1
    end.

%% The port of an integer is among the caller's links. A port of another process cannot be found,
%% short of asking all ports; its owner closes it.
close_port_of(Number) ->
    {links, Links} = process_info(self(), links),
    _ = [gen_tcp:close(Port) || Port <- Links, is_port(Port), inet:getfd(Port) =:= {ok, Number}],
    ok.

check_info(Info) when is_map(Info) ->
    Known = maps:remove(nodelay, Info),
    case {maps:get(nodelay, Info, true), erlang:external_size(Info) =< ?MAX_INFO_BYTES} of
        {Nodelay, true} when is_boolean(Nodelay) -> check_keys(Known, Nodelay);
        {_, true} -> bad_info("nodelay must be a boolean");
        {_, false} -> bad_info("it is larger than 64 KiB")
    end;
check_info(_) ->
    bad_info("it must be a map").

check_keys(Info, Nodelay) ->
    IsKey = fun(Key) -> is_atom(Key) orelse is_binary(Key) end,
    case lists:all(IsKey, maps:keys(Info)) of
        true -> check_address(Info, Nodelay);
        false -> bad_info("its keys must be atoms or binaries")
    end.

%% `inet:ntoa/1' gives a charlist, which Python would see as a list of integers.
check_address(#{addr := Address} = Info, Nodelay) when is_list(Address); is_tuple(Address) ->
    try address(Address) of
        Text when is_binary(Text) -> {ok, Info#{addr := Text}, Nodelay};
        _ -> bad_info("addr must be an address")
    catch
        error:_ -> bad_info("addr must be an address")
    end;
check_address(Info, Nodelay) ->
    {ok, Info, Nodelay}.

address({local, Path}) -> unicode:characters_to_binary(Path);
address(Address) when is_tuple(Address) -> list_to_binary(inet:ntoa(Address));
address(Address) -> unicode:characters_to_binary(Address).

bad_info(Explanation) ->
    {error, {bad_info, list_to_binary(Explanation)}}.
